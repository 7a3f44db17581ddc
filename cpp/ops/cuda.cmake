# The ops on GPUs: objects that inferno_engine, the tests and the lab link.
add_library(inferno_cuda_ops OBJECT
  attention_cuda.cu
  attention_decode.cu
  attention_prefill.cu
  attention_prefill_sm90.cu
  cublaslt.cc
  cuda_op.cc
  embed_cuda.cu
  linear_cuda.cc
  linear_decode.cu
  linear_few_rows.cu
  linear_fixups.cu
  linear_plain.cu
  random_fill_cuda.cu
  rms_norm_cuda.cu
  rope_kv_cuda.cu
  sample_cuda.cu
  sample_filter_cuda.cu
  silu_mul_cuda.cu
  tensor_map.cc)
target_include_directories(inferno_cuda_ops PUBLIC ${CMAKE_CURRENT_SOURCE_DIR}/..)
target_include_directories(inferno_cuda_ops SYSTEM PUBLIC ${CUDA_INCLUDE})
# The engine's own flags are set for every language; nvcc hands the host compiler's on.
set_property(TARGET inferno_cuda_ops PROPERTY COMPILE_OPTIONS
  "$<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Werror>"
  "$<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings;-Xcompiler=-Wall,-Wextra,-Werror>")
