#include "spectral_plan.h"

#include <algorithm>

namespace medsora {
namespace {

std::shared_ptr<const SpectralPlanTables> made_plan(int height, int width) {
    auto made = std::make_shared<SpectralPlanTables>();
    SpectralPlan& plan = made->plan;
    plan.height = height;
    plan.width = width;
    plan.even = height % 2 == 0;
    plan.kept = plan.even ? height / 2 : (height + 1) / 2;
    plan.doubled = plan.even ? 2.0f : 1.0f;
    plan.columns = plan_fft(plan.even ? height / 2 : height, made->table);
    plan.rows = plan_fft(width, made->table);
    const int split = plan_split(plan.even ? height : 0, made->table);
    plan.columns.table = plan.rows.table = made->table.data();
    plan.split = made->table.data() + split;
    return made;
}

}  // namespace

std::shared_ptr<const SpectralPlanTables> spectral_plan(int height, int width) {
    constexpr std::size_t most = 8;
    thread_local std::vector<std::shared_ptr<const SpectralPlanTables>> kept;  // the last used comes first
    const auto found = std::find_if(kept.begin(), kept.end(), [&](const auto& one) {
        return one->plan.height == height && one->plan.width == width;
    });
    if (found != kept.end()) {
        std::rotate(kept.begin(), found, found + 1);
    } else {
        kept.insert(kept.begin(), made_plan(height, width));
        if (kept.size() > most) kept.pop_back();
    }
    return kept.front();
}

}  // namespace medsora
