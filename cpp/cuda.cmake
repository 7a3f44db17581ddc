# The CUDA toolkit and how its code is built. By hand instead of CMake's own search, which the wheels' layout
# defeats: they keep their libraries in lib, without versions in their names.
find_program(CUDA_NVCC nvcc REQUIRED
             HINTS ENV CUDA_HOME ENV CUDA_PATH PATH_SUFFIXES bin)
execute_process(COMMAND ${CUDA_NVCC} --version OUTPUT_VARIABLE CUDA_NVCC_VERSION)
string(REGEX MATCH "release ([0-9.]+)" CUDA_NVCC_VERSION "${CUDA_NVCC_VERSION}")
if("${CMAKE_MATCH_1}" VERSION_LESS 13.0)
  message(FATAL_ERROR " ${CUDA_NVCC}: expected CUDA 13.0 or later, got \"${CMAKE_MATCH_1}\"")
endif()
get_filename_component(CUDA_BIN ${CUDA_NVCC} DIRECTORY)
get_filename_component(CUDA_ROOT ${CUDA_BIN} DIRECTORY)
find_path(CUDA_INCLUDE cuda_runtime_api.h REQUIRED HINTS ${CUDA_ROOT}
          PATH_SUFFIXES include targets/x86_64-linux/include NO_DEFAULT_PATH)
find_library(CUDA_RUNTIME cudart_static REQUIRED HINTS ${CUDA_ROOT}
             PATH_SUFFIXES lib lib64 targets/x86_64-linux/lib NO_DEFAULT_PATH)

# Hopper's own instructions for the H100 and H200; for everything else since the A100 the portable path, as
# machine code for 8.0 and as PTX, which the driver translates for what comes after.
set(INFERNO_CUDA_ARCHITECTURES "90a-real;80" CACHE STRING "As CMAKE_CUDA_ARCHITECTURES; one alone builds faster")
if("90" IN_LIST INFERNO_CUDA_ARCHITECTURES OR "90-real" IN_LIST INFERNO_CUDA_ARCHITECTURES)
  message(FATAL_ERROR "INFERNO_CUDA_ARCHITECTURES: for Hopper expected 90a-real, got 90")
endif()
set(CMAKE_CUDA_ARCHITECTURES ${INFERNO_CUDA_ARCHITECTURES})
set(CMAKE_CUDA_COMPILER ${CUDA_NVCC})
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")  # CMake before 3.25.2 does not know it
set(CMAKE_CUDA_FLAGS_RELEASE "-O3")
set(CMAKE_CUDA_RUNTIME_LIBRARY None)  # linked by path below
enable_language(CUDA)
set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")

# What every binary with the CUDA backend links. The driver is found at run time, and so is cuBLASLt.
add_library(inferno_cuda_runtime INTERFACE)
target_link_libraries(inferno_cuda_runtime INTERFACE ${CUDA_RUNTIME} Threads::Threads dl rt)
file(WRITE ${CMAKE_BINARY_DIR}/cuda-runtime.txt "${CUDA_RUNTIME}")
