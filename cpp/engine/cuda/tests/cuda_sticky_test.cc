// Goal: an error that makes a card unusable for the process reaches the caller as sticky, every
// time, and what the engine holds can still be given back. Method: a kernel reads where there is no
// memory, in a process of its own, because the error stays with it. Needs a GPU.
#include <doctest/doctest.h>
#include <spawn.h>
#include <sys/wait.h>

#include <cstdlib>
#include <iostream>
#include <string>

#include "engine/base/error.h"
#include "engine/cuda/cuda_memory.h"
#include "engine/testing/test_model.h"
#include "ops/rms_norm/rms_norm_cuda.h"

extern char** environ;

namespace inferno::engine {
namespace {

// No comma, at which doctest would split it.
constexpr char kOtherProcess[] = "GPU: in the process whose card fails all is sticky";
constexpr int kAllSticky = 42;

void read_where_there_is_no_memory() {
  const CudaStream stream;
  ops::cuda::rms_norm_cuda({stream.get(), 1, false}, {.x = reinterpret_cast<const float*>(0x1000),
                                                      .weight = nullptr,
                                                      .num_tokens = 1,
                                                      .hidden_size = 64,
                                                      .out = nullptr});
  cudaStreamSynchronize(stream.get());
}

template <typename Call>
bool fails_with(const std::string& beginning, const Call& call) {
  try {
    call();
    if (beginning.empty()) return true;
    std::cerr << "expected \"" << beginning << "\", got no error\n";
  } catch (...) {
    const std::string text = describe_current_exception();
    if (!beginning.empty() && text.starts_with(beginning)) return true;
    std::cerr << "expected \"" << beginning << "\", got \"" << text << "\"\n";
  }
  return false;
}

bool all_is_sticky() {
  LlamaShape shape = test::small_shape(ops::Dtype::BF16);
  shape.intermediate_size = 104;
  shape.head_dim = 64;
  Context context({.num_threads = 2, .pool_bytes = 256 << 20, .backend = BackendKind::Cuda});
  const ModelLimits limits{.block_size = 16,
                           .kv_bytes = 4 << 20,
                           .max_batch_size = 2,
                           .max_step_tokens = 32,
                           .max_seq_len = 64,
                           .end_token_ids = {}};
  const std::uint32_t model = context.add_model(spec_of(shape), limits).model;
  context.fill_random(model, 1);
  context.finish_model(model);
  test::bind_seats(context, model, 1);
  const test::Step step({{.token_ids = {1, 2, 3}, .blocks = {0}}});
  const auto run = [&] { context.run_step(model, step.batch(false)); };
  bool good = fails_with("", run);
  read_where_there_is_no_memory();
  for (int i = 0; i < 3; ++i) good = fails_with("sticky: ", run) && good;
  return fails_with("sticky: ", [] { reserve_device_memory(256); }) && good;
}

TEST_CASE(kOtherProcess* doctest::skip()) {
  const bool good = all_is_sticky();
  // By its own number, so that a process in which no test ran is not taken for success.
  std::exit(good ? kAllSticky : EXIT_FAILURE);
}

TEST_CASE("GPU: a failed card is sticky and its process ends in order") {
  const std::string only = std::string("--test-case=") + kOtherProcess;
  const char* arguments[] = {"inferno_cuda_tests", "--no-skip", only.c_str(), nullptr};
  pid_t child = 0;
  REQUIRE(posix_spawn(&child, "/proc/self/exe", nullptr, nullptr,
                      const_cast<char* const*>(arguments), environ) == 0);
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  REQUIRE(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == kAllSticky);
}

}  // namespace
}  // namespace inferno::engine
