#include "ops/linear/cuda/cublaslt.h"

#include <dlfcn.h>

#include <stdexcept>
#include <string>

namespace inferno::ops::cuda {
namespace {

constexpr std::size_t kWorkspaceBytes = std::size_t{32} << 20;  // what NVIDIA advises for sm_90

template <typename Function>
void find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  if (function == nullptr) throw std::runtime_error(std::string("other: cuBLASLt lacks ") + name);
}

void check_lt(cublasStatus_t status, const char* call) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  const bool memory = status == CUBLAS_STATUS_ALLOC_FAILED;
  throw std::runtime_error((memory ? "out_of_memory: " : "other: ") + std::string(call) +
                           ": cublasStatus " + std::to_string(static_cast<int>(status)));
}

// Prompts have any length; what is best for one is near enough to the best for the next longer. Of
// many tokens, where most tiles have 128 of them, those have as many tiles.
std::uint32_t round_up_tokens(std::uint32_t num_tokens) {
  const std::uint32_t step = num_tokens <= 256 ? 16 : num_tokens <= 1024 ? 64 : 128;
  return (num_tokens + step - 1) / step * step;
}

}  // namespace

struct CublasLt::Library {
  Library() {
    // Not the name without a version, under which an older one may stand.
    handle = dlopen("libcublasLt.so.13", RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
      const char* reason = dlerror();
      throw std::runtime_error(std::string("other: cuBLASLt of CUDA 13 cannot be opened: ") +
                               (reason == nullptr ? "no reason given" : reason));
    }
    find(handle, "cublasLtCreate", create);
    find(handle, "cublasLtDestroy", destroy);
    find(handle, "cublasLtMatmul", matmul);
    find(handle, "cublasLtMatmulAlgoGetHeuristic", get_heuristic);
    find(handle, "cublasLtMatmulDescCreate", desc_create);
    find(handle, "cublasLtMatmulDescDestroy", desc_destroy);
    find(handle, "cublasLtMatmulDescSetAttribute", desc_set);
    find(handle, "cublasLtMatrixLayoutCreate", layout_create);
    find(handle, "cublasLtMatrixLayoutDestroy", layout_destroy);
    find(handle, "cublasLtMatmulPreferenceCreate", preference_create);
    find(handle, "cublasLtMatmulPreferenceDestroy", preference_destroy);
    find(handle, "cublasLtMatmulPreferenceSetAttribute", preference_set);
  }
  // Never closed: the library leaves threads and handlers behind that outlive it.

  void* handle = nullptr;
  decltype(&cublasLtCreate) create;
  decltype(&cublasLtDestroy) destroy;
  decltype(&cublasLtMatmul) matmul;
  decltype(&cublasLtMatmulAlgoGetHeuristic) get_heuristic;
  decltype(&cublasLtMatmulDescCreate) desc_create;
  decltype(&cublasLtMatmulDescDestroy) desc_destroy;
  decltype(&cublasLtMatmulDescSetAttribute) desc_set;
  decltype(&cublasLtMatrixLayoutCreate) layout_create;
  decltype(&cublasLtMatrixLayoutDestroy) layout_destroy;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create;
  decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set;
};

// cuBLAS thinks in columns: to it W is K x N, h is K x T and y = Wᵀ · h is N x T.
struct CublasLt::Descriptors {
  Descriptors(const Library& library, const LtProduct& product, std::uint32_t num_tokens)
      : library_(library) {
    const std::uint32_t rows = product.weight.num_rows;
    const std::uint32_t columns = product.weight.num_columns;
    const bool codes = product.scales.h != nullptr;
    const cudaDataType_t element = product.dtype == Dtype::BF16 ? CUDA_R_16BF : CUDA_R_16F;
    const cudaDataType_t factor = codes ? CUDA_R_8F_E4M3 : element;
    check_lt(library.desc_create(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F), "cublasLtMatmulDesc");
    set(CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
    if (codes) set_scales(product.scales);
    check_lt(library.layout_create(&weight, factor, columns, rows, columns), "cublasLtLayout");
    check_lt(library.layout_create(&h, factor, columns, num_tokens, columns), "cublasLtLayout");
    check_lt(library.layout_create(&y, product.float_y ? CUDA_R_32F : element, rows, num_tokens,
                                   product.y_stride == 0 ? rows : product.y_stride),
             "cublasLtLayout");
  }
  ~Descriptors() {
    if (y != nullptr) library_.layout_destroy(y);
    if (h != nullptr) library_.layout_destroy(h);
    if (weight != nullptr) library_.layout_destroy(weight);
    if (desc != nullptr) library_.desc_destroy(desc);
  }
  Descriptors(const Descriptors&) = delete;
  Descriptors& operator=(const Descriptors&) = delete;

  cublasLtMatmulDesc_t desc = nullptr;
  cublasLtMatrixLayout_t weight = nullptr;
  cublasLtMatrixLayout_t h = nullptr;
  cublasLtMatrixLayout_t y = nullptr;

 private:
  template <typename Value>
  void set(cublasLtMatmulDescAttributes_t attribute, const Value& value) {
    check_lt(library_.desc_set(desc, attribute, &value, sizeof(value)),
             "cublasLtMatmulDescSetAttribute");
  }

  void set_scales(const LtScales& scales) {
    const std::int32_t by_row = CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
    set(CUBLASLT_MATMUL_DESC_A_SCALE_MODE, by_row);
    set(CUBLASLT_MATMUL_DESC_B_SCALE_MODE, by_row);
    set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, scales.weight);
    set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, scales.h);
    // Sums of some bits less than a float's: their error is far below that of codes.
    set(CUBLASLT_MATMUL_DESC_FAST_ACCUM, std::int8_t{1});
  }

  const Library& library_;
};

CublasLt::CublasLt(void* workspace, std::uint32_t max_tokens)
    : library_(std::make_unique<const Library>()), workspace_(workspace), max_tokens_(max_tokens) {
  check_lt(library_->create(&handle_), "cublasLtCreate");
}

CublasLt::~CublasLt() { library_->destroy(handle_); }

std::size_t CublasLt::workspace_bytes() { return kWorkspaceBytes; }

CublasLt::Key CublasLt::key_of(const LtProduct& product, std::uint32_t num_tokens) {
  return {num_tokens,
          product.weight.num_rows,
          product.weight.num_columns,
          product.y_stride,
          product.dtype,
          product.float_y,
          product.add,
          product.scales.h != nullptr};
}

cublasLtMatmulAlgo_t CublasLt::choose(const LtProduct& product, std::uint32_t num_tokens) const {
  const Descriptors d(*library_, product, num_tokens);
  cublasLtMatmulPreference_t preference = nullptr;
  check_lt(library_->preference_create(&preference), "cublasLtMatmulPreferenceCreate");
  const std::size_t workspace_bytes = kWorkspaceBytes;
  const std::uint32_t alignment = 16;  // of h and y; the weight's is 256, as cuBLASLt supposes
  const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t which, const auto& value) {
    check_lt(library_->preference_set(preference, which, &value, sizeof(value)),
             "cublasLtMatmulPreferenceSetAttribute");
  };
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace_bytes);
  // Parts of a sum are added in float, not in the result's 16 bits, whose error would be theirs.
  const std::uint32_t reduction = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
  prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, reduction);
  for (const auto matrix :
       {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
    prefer(matrix, alignment);
  }
  cublasLtMatmulHeuristicResult_t result;
  int num_results = 0;
  const cublasStatus_t status = library_->get_heuristic(handle_, d.desc, d.weight, d.h, d.y, d.y,
                                                        preference, 1, &result, &num_results);
  library_->preference_destroy(preference);
  check_lt(status, "cublasLtMatmulAlgoGetHeuristic");
  if (num_results == 0) throw std::runtime_error("other: cuBLASLt knows no way for this product");
  return result.algo;
}

const cublasLtMatmulAlgo_t& CublasLt::algorithm(const LtProduct& product) {
  const auto exception = exceptions_.find(key_of(product, product.num_tokens));
  if (exception != exceptions_.end()) return exception->second;
  const std::uint32_t wanted = round_up_tokens(product.num_tokens);
  const auto known = algorithms_.find(key_of(product, wanted));
  if (known != algorithms_.end()) return known->second;
  const std::uint32_t last = round_up_tokens(max_tokens_);
  for (std::uint32_t t = 0; t < last;) {
    t = round_up_tokens(t + 1);
    algorithms_.try_emplace(key_of(product, t), choose(product, t));
  }
  return algorithms_.try_emplace(key_of(product, wanted), choose(product, wanted)).first->second;
}

cublasStatus_t CublasLt::run(const CudaOp& op, const LtProduct& product,
                             const cublasLtMatmulAlgo_t& algorithm) const {
  const Descriptors d(*library_, product, product.num_tokens);
  const float beta = product.add ? 1.0F : 0.0F;
  return library_->matmul(handle_, d.desc, &product.scale, product.weight.data, d.weight, product.h,
                          d.h, &beta, product.y, d.y, product.y, d.y, &algorithm, workspace_,
                          kWorkspaceBytes, op.stream);
}

void CublasLt::multiply(const CudaOp& op, const LtProduct& product) {
  cublasStatus_t status = run(op, product, algorithm(product));
  if (status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_INVALID_VALUE) {
    // The neighbours' choice does not fit this T.
    const auto chosen = choose(product, product.num_tokens);
    exceptions_.insert_or_assign(key_of(product, product.num_tokens), chosen);
    status = run(op, product, chosen);
  }
  if (status == CUBLAS_STATUS_EXECUTION_FAILED || status == CUBLAS_STATUS_INTERNAL_ERROR) {
    // What stands behind it may be sticky; this call says so, and does not disturb a recording.
    cudaStreamCaptureStatus capture;
    check(cudaStreamIsCapturing(op.stream, &capture), "cublasLtMatmul");
  }
  check_lt(status, "cublasLtMatmul");
}

}  // namespace inferno::ops::cuda
