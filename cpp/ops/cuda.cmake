# The ops on GPUs: objects that inferno_engine, the tests and the lab link.
add_library(inferno_cuda_ops OBJECT
  attention/cuda/attention_cuda.cu
  attention/cuda/attention_decode.cu
  attention/cuda/attention_decode_fp8.cu
  attention/cuda/attention_prefill.cu
  attention/cuda/attention_prefill_fp8.cu
  attention/cuda/attention_prefill_sm90.cu
  attention/cuda/attention_prefill_sm90_fp8.cu
  linear/cuda/cublaslt.cc
  add_norm/add_norm_cuda.cu
  cuda/cuda_op.cc
  embed/embed_cuda.cu
  gather_columns/gather_columns_cuda.cu
  glu/glu_cuda.cu
  experts/cuda/experts_cuda.cc
  experts/cuda/experts_decode.cu
  experts/cuda/experts_plain.cu
  experts/cuda/experts_stream.cu
  experts/cuda/experts_sum.cu
  experts/cuda/experts_tiles.cu
  experts/cuda/route_cuda.cu
  linear/cuda/code_layout.cc
  linear/cuda/dequantize_cuda.cu
  linear/cuda/linear_code_tiles.cu
  linear/cuda/linear_code_tiles_fp8.cu
  linear/cuda/linear_code_tiles_int4.cu
  linear/cuda/linear_code_tiles_int4_offsets.cu
  linear/cuda/linear_code_tiles_int4_small_groups.cu
  linear/cuda/linear_code_tiles_int8.cu
  linear/cuda/linear_code_tiles_mxfp4.cu
  linear/cuda/linear_codes.cu
  linear/cuda/linear_codes_fp8.cu
  linear/cuda/linear_codes_int4.cu
  linear/cuda/linear_codes_int4_offsets.cu
  linear/cuda/linear_codes_int4_small_groups.cu
  linear/cuda/linear_codes_int8.cu
  linear/cuda/linear_codes_mxfp4.cu
  linear/cuda/linear_cuda.cc
  linear/cuda/linear_decode.cu
  linear/cuda/linear_few_rows.cu
  linear/cuda/linear_fixups.cu
  linear/cuda/linear_plain.cu
  linear/cuda/quantize_inputs_cuda.cu
  process_logits/process_logits_cuda.cu
  random_fill/random_codes_cuda.cu
  random_fill/random_fill_cuda.cu
  head_norm/head_norm_cuda.cu
  rms_norm/rms_norm_cuda.cu
  rope/rope_kv_cuda.cu
  sample/sample_cuda.cu
  sample/sample_filter_cuda.cu
  score/score_cuda.cu
  sigmoid_gate/sigmoid_gate_cuda.cu
  softcap/softcap_cuda.cu
  cuda/tensor_map.cc)
target_include_directories(inferno_cuda_ops PUBLIC ${CMAKE_CURRENT_SOURCE_DIR}/..)
target_include_directories(inferno_cuda_ops SYSTEM PUBLIC ${CUDA_INCLUDE})
# The engine's own flags are set for every language; nvcc hands the host compiler's on.
set_property(TARGET inferno_cuda_ops PROPERTY COMPILE_OPTIONS
  "$<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Werror>"
  "$<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings;-Xcompiler=-Wall,-Wextra,-Werror>")
# These call the constexpr functions of process_logits.h.
set_property(SOURCE process_logits/process_logits_cuda.cu sample/sample_cuda.cu sample/sample_filter_cuda.cu
             score/score_cuda.cu PROPERTY COMPILE_OPTIONS "--expt-relaxed-constexpr")
