#include "threads.h"

namespace medsora {

int openmp_version() {
#ifdef _OPENMP
    return _OPENMP;
#else
    return 0;
#endif
}

int threads_seen(int wanted) {
    int seen = 0;
    if (wanted <= 1) return 1;
#ifdef _OPENMP
#pragma omp parallel num_threads(wanted) reduction(+ : seen)
#endif
    seen += 1;
    return seen;
}

}  // namespace medsora
