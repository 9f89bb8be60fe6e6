// Memory that comes from the system with its first use.
#pragma once

#include <cstdint>

namespace medsora {

// Asks the system to back what lies between the two ends by huge pages where it can. Memory is handed over page by page
// as it is first written: in small pages that takes about 10 times as long as copying into it, in huge ones twice.
void back_by_huge_pages(void* start, std::int64_t bytes);

}  // namespace medsora
