#include "engine/base/error.h"

#include <new>

namespace inferno::engine {

const char* code_name(ErrorCode code) {
  switch (code) {
    case ErrorCode::kOutOfMemory:
      return "out_of_memory";
    case ErrorCode::kInvalidBatch:
      return "invalid_batch";
    case ErrorCode::kSticky:
      return "sticky";
    case ErrorCode::kOther:
      break;
  }
  return "other";
}

Error::Error(ErrorCode code, const std::string& message)
    : std::runtime_error(std::string(code_name(code)) + ": " + message), code_(code) {}

std::string describe_current_exception() {
  try {
    throw;
  } catch (const std::bad_alloc&) {
    return "out_of_memory: the host has no memory for the engine's own tables";
  } catch (const std::exception& error) {
    return error.what();
  } catch (...) {
    return "other: an exception of unknown type";
  }
}

}  // namespace inferno::engine
