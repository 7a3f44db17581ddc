// What the engine throws: a closed list of codes and a text.
#pragma once

#include <stdexcept>
#include <string>

namespace inferno::engine {

enum class ErrorCode {
  kOutOfMemory,   // the pool or the machine has not enough memory
  kInvalidBatch,  // a step's arrays contradict each other or the model
  kSticky,        // the device is unusable until the process restarts
  kOther,
};

// The fixed text that an error of this code starts with, without the colon.
const char* code_name(ErrorCode code);

// what() is `code: message`.
class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message);
  ErrorCode code() const { return code_; }

 private:
  ErrorCode code_;
};

// Runs inside a catch block: the current exception as `code: message`. std::bad_alloc is
// out_of_memory. Of another standard exception the text as it is: the ops begin theirs with a code,
// and the other side of the bridge, which reads codes, takes what has none for other.
std::string describe_current_exception();

}  // namespace inferno::engine
