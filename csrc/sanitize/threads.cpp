// How work is shared out: the number of threads given and got, at sizes small and large.
#include "../cpu/threads.h"

#include "check.h"

namespace medsora::check {
namespace {

void threads_all(const Setting& setting) {
    constexpr std::int64_t share = bytes_per_thread;
    expect(threads_for(0, 8) == 1 && threads_for(2 * share - 1, 8) == 1, "threads_for: wakes a thread for little");
    expect(threads_for(3 * share, 8) == 3, "threads_for: does not give each thread its share");
    expect(threads_for(std::int64_t{1} << 60, 5) == 5, "threads_for: more than wanted");
    expect(threads_for(share, 0) == 1 && threads_for(share, -1) == 1, "threads_for: fewer than one");
    const int wanted = openmp_version() ? setting.threads : 1;
    expect(threads_seen(setting.threads) == wanted, "threads_seen: ", threads_seen(setting.threads), " of ", wanted);
}

const Registered check("threads", threads_all);

}  // namespace
}  // namespace medsora::check
