//! Builds the engine (cmake) and the bridge to it (cxx).

use std::path::PathBuf;

fn main() {
    let root = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));
    // Counts the lines that the Rust tests reach in the engine (`make coverage`).
    let coverage = std::env::var_os("INFERNO_COVERAGE").is_some();
    println!("cargo:rerun-if-env-changed=INFERNO_COVERAGE");

    // Generates the bridge's headers, which the engine includes; the engine must follow it on the linker's line.
    cxx_build::bridges(["src/bridge.rs", "src/bridge/spec.rs"])
        .include(root.join("cpp"))
        .std("c++20")
        .flag("-Wall")
        .flag("-Wextra")
        .compile("inferno_bridge");

    let cuda = std::env::var_os("CARGO_FEATURE_CUDA").is_some();
    let engine = cmake::Config::new("cpp")
        .profile("Release")
        .define("INFERNO_CUDA", if cuda { "ON" } else { "OFF" })
        .define("INFERNO_BRIDGE_INCLUDE", out.join("cxxbridge/include"))
        .define("INFERNO_COVERAGE", if coverage { "ON" } else { "OFF" })
        .build_target("inferno_engine")
        .build();
    println!("cargo:rustc-link-search=native={}", engine.join("build").display());
    println!("cargo:rustc-link-lib=static=inferno_engine");
    if cuda {
        link_cuda_runtime(&engine.join("build"));
    }
    println!("cargo:rustc-link-lib=dylib=stdc++");
    if coverage {
        println!("cargo:rustc-link-lib=dylib=gcov");
    }
    println!("cargo:rerun-if-changed=cpp");
    println!("cargo:rerun-if-changed=src/bridge.rs");
    println!("cargo:rerun-if-changed=src/bridge/spec.rs");
}

/// The static CUDA runtime that cmake found beside its compiler. The driver is opened at run time, so nothing else is linked.
fn link_cuda_runtime(build: &std::path::Path) {
    for variable in ["CUDA_HOME", "CUDA_PATH", "PATH"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    let library = std::fs::read_to_string(build.join("cuda-runtime.txt")).expect("cmake wrote it");
    let library = PathBuf::from(library.trim());
    let folder = library.parent().expect("a path from cmake is absolute");
    println!("cargo:rustc-link-search=native={}", folder.display());
    println!("cargo:rustc-link-lib=static=cudart_static");
    println!("cargo:rustc-link-lib=dylib=dl");
    println!("cargo:rustc-link-lib=dylib=rt");
}
