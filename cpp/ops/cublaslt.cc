#include "ops/cublaslt.h"

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

// Prompts have any length; what is best for one is near enough to the best for the next longer.
std::uint32_t round_up_tokens(std::uint32_t num_tokens) {
  const std::uint32_t step = num_tokens <= 256 ? 16 : num_tokens <= 1024 ? 64 : 256;
  return (num_tokens + step - 1) / step * step;
}

}  // namespace

struct CublasLt::Library {
  Library() {
    for (const char* name : {"libcublasLt.so.13", "libcublasLt.so"}) {
      if (handle == nullptr) handle = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    }
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
    const cudaDataType_t element = product.weight.dtype == Dtype::BF16 ? CUDA_R_16BF : CUDA_R_16F;
    const cublasOperation_t transposed = CUBLAS_OP_T;
    check_lt(library.desc_create(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F), "cublasLtMatmulDesc");
    check_lt(library.desc_set(desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof(transposed)),
             "cublasLtMatmulDescSetAttribute");
    check_lt(library.layout_create(&weight, element, columns, rows, columns), "cublasLtLayout");
    check_lt(library.layout_create(&h, element, columns, num_tokens, columns), "cublasLtLayout");
    check_lt(
        library.layout_create(&y, product.float_y ? CUDA_R_32F : element, rows, num_tokens, rows),
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
  const Library& library_;
};

CublasLt::CublasLt(void* workspace)
    : library_(std::make_unique<const Library>()), workspace_(workspace) {
  check_lt(library_->create(&handle_), "cublasLtCreate");
}

CublasLt::~CublasLt() { library_->destroy(handle_); }

std::size_t CublasLt::workspace_bytes() { return kWorkspaceBytes; }

cublasLtMatmulAlgo_t CublasLt::choose(const Descriptors& d) const {
  cublasLtMatmulPreference_t preference = nullptr;
  check_lt(library_->preference_create(&preference), "cublasLtMatmulPreferenceCreate");
  const std::size_t workspace_bytes = kWorkspaceBytes;
  const std::uint32_t alignment = 16;  // of h and y; the weight's is 256, as cuBLASLt supposes
  library_->preference_set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace_bytes,
                           sizeof(workspace_bytes));
  for (const auto matrix :
       {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
    library_->preference_set(preference, matrix, &alignment, sizeof(alignment));
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
  const std::uint32_t num_tokens = round_up_tokens(product.num_tokens);
  const Key key{num_tokens,           product.weight.num_rows, product.weight.num_columns,
                product.weight.dtype, product.float_y,         product.add};
  const auto known = algorithms_.find(key);
  if (known != algorithms_.end()) return known->second;
  const auto chosen = choose(Descriptors(*library_, product, num_tokens));
  return algorithms_.emplace(key, chosen).first->second;
}

cublasStatus_t CublasLt::run(const CudaOp& op, const LtProduct& product,
                             const cublasLtMatmulAlgo_t& algorithm) const {
  const Descriptors d(*library_, product, product.num_tokens);
  const float one = 1.0F;
  const float beta = product.add ? 1.0F : 0.0F;
  return library_->matmul(handle_, d.desc, &one, product.weight.data, d.weight, product.h, d.h,
                          &beta, product.y, d.y, product.y, d.y, &algorithm, workspace_,
                          kWorkspaceBytes, op.stream);
}

void CublasLt::multiply(const CudaOp& op, const LtProduct& product) {
  cublasStatus_t status = run(op, product, algorithm(product));
  if (status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_INVALID_VALUE) {
    // The neighbour's choice does not fit this T.
    status = run(op, product, choose(Descriptors(*library_, product, product.num_tokens)));
  }
  check_lt(status, "cublasLtMatmul");
}

}  // namespace inferno::ops::cuda
