//! Has the guest linked to the addresses that its loader expects.

fn main() {
    println!("cargo::rerun-if-changed=guest.ld");
    let target = std::env::var("CARGO_CFG_TARGET_OS").unwrap_or_default();
    if target == "none" {
        let folder = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
        println!("cargo::rustc-link-arg-bins=-T{folder}/guest.ld");
        // The target's own default is an executable that relocates itself.
        println!("cargo::rustc-link-arg-bins=--no-pie");
    }
}
