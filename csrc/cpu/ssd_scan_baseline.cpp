#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include "ssd_scan_kernels.h"

#define MEDSORA_LANES 4
#define MEDSORA_SSD_SCAN_KERNELS ssd_scan_kernels_baseline
#include "vector.inc"
// In this order: each builds on those before it.
#include "gemm.inc"
#include "scan_tile.inc"
#include "scan_tile_backward.inc"
#include "scan_states.inc"
#include "ssd_scan_rows.inc"
#include "ssd_scan.inc"
