//! Builds the engine (cmake) and the bridge to it (cxx).

use std::path::PathBuf;

fn main() {
    let root = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));
    // Counts the lines that the Rust tests reach in the engine (`make coverage`).
    let coverage = std::env::var_os("INFERNO_COVERAGE").is_some();
    println!("cargo:rerun-if-env-changed=INFERNO_COVERAGE");

    // Generates the bridge's headers, which the engine includes; the engine must follow it on the linker's line.
    cxx_build::bridge("src/bridge.rs")
        .include(root.join("cpp"))
        .std("c++20")
        .flag("-Wall")
        .flag("-Wextra")
        .compile("inferno_bridge");

    let engine = cmake::Config::new("cpp")
        .profile("Release")
        .define("INFERNO_BRIDGE_INCLUDE", out.join("cxxbridge/include"))
        .define("INFERNO_COVERAGE", if coverage { "ON" } else { "OFF" })
        .build_target("inferno_engine")
        .build();
    println!("cargo:rustc-link-search=native={}", engine.join("build").display());
    println!("cargo:rustc-link-lib=static=inferno_engine");
    println!("cargo:rustc-link-lib=dylib=stdc++");
    if coverage {
        println!("cargo:rustc-link-lib=dylib=gcov");
    }
    println!("cargo:rerun-if-changed=cpp");
    println!("cargo:rerun-if-changed=src/bridge.rs");
}
