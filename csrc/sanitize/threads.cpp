// How work is shared out: the number of threads given and got, at sizes small and large.
#include "../cpu/threads.h"

#include "check.h"

namespace medsora::check {
namespace {

void threads_all(const Setting& setting) {
    expect(threads_for(0, 8) == 1 && threads_for(bytes_per_thread - 1, 8) == 1, "threads_for: wakes a thread for little");
    expect(threads_for(3 * bytes_per_thread, 8) == 3, "threads_for: each thread has its share at least");
    expect(threads_for(std::int64_t{1} << 60, 5) == 5, "threads_for: not more than wanted");
    expect(threads_for(bytes_per_thread, 0) == 1 && threads_for(bytes_per_thread, -1) == 1, "threads_for: one at least");
    const int wanted = openmp_version() ? setting.threads : 1;
    expect(threads_seen(setting.threads) == wanted, "threads_seen: ", threads_seen(setting.threads), " of ", wanted);
}

const Registered check("threads", threads_all);

}  // namespace
}  // namespace medsora::check
