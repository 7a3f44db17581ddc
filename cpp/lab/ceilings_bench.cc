// Prints what the card reaches at its best: reads and copies of memory, a large product.
//   ceilings_bench
#include "lab/support/ceilings.h"

int main() {
  return inferno::lab::run_bench([] {
    const inferno::lab::Gpu gpu;
    inferno::lab::print_read_ceiling(gpu);
    inferno::lab::print_copy_ceiling(gpu);
    inferno::lab::print_product_ceiling(gpu);
  });
}
