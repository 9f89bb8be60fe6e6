// Division by a number known before a kernel starts: a multiplication and a shift in place of some twenty instructions.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace medsora {

// n / divisor and n % divisor for 0 <= n < 2^31 and 1 <= divisor < 2^31.
class Divider {
public:
    Divider() = default;  // by 1
    explicit Divider(std::int64_t divisor) : divisor_(static_cast<std::uint32_t>(divisor)) {
        while ((std::uint64_t{1} << shift_) < divisor_) ++shift_;
        // 2^32 (2^shift / divisor - 1), rounded up: what is left of the reciprocal beside a whole one.
        multiplier_ = static_cast<std::uint32_t>((((std::uint64_t{1} << shift_) - divisor_) << 32) / divisor_ + 1);
    }

    MEDSORA_HOST_DEVICE std::uint32_t quotient(std::uint32_t n) const {
        const auto high = static_cast<std::uint32_t>((std::uint64_t{n} * multiplier_) >> 32);
        return (high + n) >> shift_;
    }
    MEDSORA_HOST_DEVICE std::uint32_t divisor() const { return divisor_; }

private:
    std::uint32_t divisor_ = 1, multiplier_ = 1, shift_ = 0;
};

}  // namespace medsora
