#include <cstdint>
#include <cstring>

#include "add_rows.h"

#define MEDSORA_ADD_ROWS add_rows_baseline
#include "add_rows.inc"
