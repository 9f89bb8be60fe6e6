// The threads of a block: a kernel written in steps between barriers runs on a GPU, and thread by thread on a CPU.
//
// A step is a function of the thread's number. No step may read what another thread writes in the same step.
#pragma once

#include <cstddef>
#include <vector>

#include "host_device.h"

namespace medsora {
namespace {

#if defined(__CUDACC__)
class GpuTeam {
   public:
    MEDSORA_HOST_DEVICE int size() const {
#if defined(__CUDA_ARCH__)
        return static_cast<int>(blockDim.x);
#else
        return 0;
#endif
    }

    MEDSORA_HOST_DEVICE void meet() const {
#if defined(__CUDA_ARCH__)
        __syncthreads();
#endif
    }

    // A step, and a barrier.
    template <typename Step>
    MEDSORA_HOST_DEVICE void each(const Step& step) const {
        step(number());
        meet();
    }

    // All threads read before the first of them writes; what a thread keeps in between stays in its registers. No
    // barrier follows.
    template <typename Kept, typename Read, typename Write>
    MEDSORA_HOST_DEVICE void exchange(const Read& read, const Write& write) const {
        Kept kept{};  // else what a thread without work has kept before would stay in registers for ever
        const int thread = number();
        read(thread, kept);
        meet();
        write(thread, kept);
    }

   private:
    // Unknown to the compiler from step to step: else it would keep in registers what it can compute of one step's
    // addresses through all steps before.
    static MEDSORA_HOST_DEVICE int number() {
#if defined(__CUDA_ARCH__)
        int thread = static_cast<int>(threadIdx.x);
        asm volatile("" : "+r"(thread));
        return thread;
#else
        return 0;
#endif
    }
};
#endif

// Goes through the threads forwards and backwards by turns, so that a step in which one reads what another writes is
// wrong in one of them.
class CpuTeam {
   public:
    explicit CpuTeam(int size) : size_(size) {}

    int size() const { return size_; }
    void meet() const {}

    template <typename Step>
    void each(const Step& step) const {
        backwards_ = !backwards_;
        for (int i = 0; i < size_; ++i) step(backwards_ ? size_ - 1 - i : i);
    }

    template <typename Kept, typename Read, typename Write>
    void exchange(const Read& read, const Write& write) const {
        std::vector<Kept> kept(static_cast<std::size_t>(size_));
        each([&](int thread) { read(thread, kept[thread]); });
        each([&](int thread) { write(thread, kept[thread]); });
    }

   private:
    int size_;
    mutable bool backwards_ = true;
};

// Sets cells[group * members] to all values of a group, combined pairwise in an order that only `members` decides.
// Threads [group * members, (group + 1) * members) form a group; cells has one for each thread.
template <typename Team, typename Cell, typename Value, typename Combine>
MEDSORA_HOST_DEVICE void combine_groups(const Team& team, Cell* cells, int groups, int members, const Value& value,
                                        const Combine& combine) {
    team.each([&](int thread) {
        if (thread < groups * members) cells[thread] = value(thread / members, thread % members);
    });
    for (int left = members; left > 1;) {
        const int half = (left + 1) / 2;
        team.each([&](int thread) {
            if (thread < groups * members && thread % members < left - half) {
                cells[thread] = combine(cells[thread], cells[thread + half]);
            }
        });
        left = half;
    }
}

}  // namespace
}  // namespace medsora
