#include "fresh_memory.h"

#if __has_include(<sys/mman.h>)
#include <sys/mman.h>
#endif

namespace medsora {

void back_by_huge_pages(void* start, std::int64_t bytes) {
#ifdef MADV_HUGEPAGE
    constexpr std::uintptr_t page = std::uintptr_t{1} << 21;
    const std::uintptr_t from = reinterpret_cast<std::uintptr_t>(start);
    const std::uintptr_t first = (from + page - 1) / page * page, end = (from + bytes) / page * page;
    if (first < end) madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);  // advice: a refusal is fine
#else
    (void)start;
    (void)bytes;
#endif
}

}  // namespace medsora
