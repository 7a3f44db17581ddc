// Goal: whatever is thrown reaches Rust as a text, with its code where it has one. Method: throw it
// and ask.
#include "engine/base/error.h"

#include <doctest/doctest.h>

#include <new>

namespace inferno::engine {
namespace {

template <typename Exception>
std::string described(const Exception& exception) {
  try {
    throw exception;
  } catch (...) {
    return describe_current_exception();
  }
}

TEST_CASE("our errors keep their code") {
  CHECK(described(Error(ErrorCode::kOutOfMemory, "need 2, have 1")) ==
        "out_of_memory: need 2, have 1");
  CHECK(described(Error(ErrorCode::kInvalidBatch, "x")) == "invalid_batch: x");
  CHECK(described(Error(ErrorCode::kSticky, "x")) == "sticky: x");
  CHECK(described(Error(ErrorCode::kOther, "x")) == "other: x");
  CHECK(Error(ErrorCode::kSticky, "x").code() == ErrorCode::kSticky);
}

TEST_CASE("every other type becomes a text too") {
  CHECK(described(std::bad_alloc()).starts_with("out_of_memory: "));
  CHECK(described(std::bad_array_new_length()).starts_with("out_of_memory: "));
  CHECK(described(std::invalid_argument("invalid_batch: slot 3")) == "invalid_batch: slot 3");
  CHECK(described(std::runtime_error("vector::reserve")) == "vector::reserve");
  CHECK(described(42).starts_with("other: "));
}

}  // namespace
}  // namespace inferno::engine
