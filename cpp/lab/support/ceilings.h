// What the card reaches at its best. Measured by whoever holds other figures against it, in the
// same run: cards of one name differ, and so do their clocks from hour to hour. Each takes a few
// GB while it runs and well under a second.
#pragma once

#include "lab/support/gpu_bench.h"

namespace inferno::lab {

// Bytes a second by plain loads of 16, where each kernel of a chain reads `bytes` that are not in
// the L2: the beginning and end of a kernel count the more the less it reads.
double read_ceiling(const Gpu& gpu, std::size_t bytes);

// Each is printed in a line of its own, "read 4.54 TB/s", and returned per second.
double print_read_ceiling(const Gpu& gpu);     // bytes; read_ceiling of very many
double print_copy_ceiling(const Gpu& gpu);     // bytes read and bytes written together
double print_product_ceiling(const Gpu& gpu);  // operations of a product in bf16 by cuBLASLt

}  // namespace inferno::lab
