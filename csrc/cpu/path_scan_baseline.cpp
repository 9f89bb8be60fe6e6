#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include "path_scan_kernels.h"

#define MEDSORA_LANES 4
#define MEDSORA_PATH_SCAN_KERNELS path_scan_kernels_baseline
#include "vector.inc"
// In this order: each builds on those before it.
#include "gemm.inc"
#include "scan_tile.inc"
#include "scan_tile_backward.inc"
#include "path_scan_rows.inc"
#include "path_scan_convolution.inc"
#include "path_scan.inc"
