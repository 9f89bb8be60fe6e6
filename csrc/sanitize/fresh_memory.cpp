// Advice about memory must change nothing in it, wherever it starts and however short it is.
#include "../cpu/fresh_memory.h"

#include "check.h"

namespace medsora::check {
namespace {

void back_all(const Setting&) {
    for (std::int64_t bytes : {std::int64_t{0}, std::int64_t{1}, std::int64_t{5} << 20}) {
        for (std::int64_t shift : {0, 1, 4095}) {
            Guarded<char> memory(bytes, shift);
            std::fill_n(memory.data(), bytes, 'm');
            back_by_huge_pages(memory.data(), bytes);
            memory.check_guards("memory");
            expect(std::count(memory.data(), memory.data() + bytes, 'm') == bytes, "memory: changed");
        }
    }
}

const Registered check("back_by_huge_pages", back_all);

}  // namespace
}  // namespace medsora::check
