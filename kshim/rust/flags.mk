# SPDX-License-Identifier: GPL-2.0-only
#
# How the Rust library is compiled.  Kbuild includes this with the configuration of
# the kernel, and package/Makefile with every mitigation that a kernel may have.
#
# Needs: src, rust-dir.  Sets: rust-lib, and the command rust-cargo that makes it.

rust-target := x86_64-unknown-none
rust-lib := $(rust-dir)/$(rust-target)/kernel/libptdma_kshim.a

# A module is linked at fixed addresses of the kernel's own range, without red
# zone (interrupts use the same stack), and is never unwound.
rust-flags := -Crelocation-model=static -Ccode-model=kernel -Cno-redzone=y \
	      -Cforce-unwind-tables=n -Csymbol-mangling-version=v0 -Zplt=yes
# The mitigations had other names before 6.9.
rust-flags-$(or $(CONFIG_MITIGATION_RETPOLINE),$(CONFIG_RETPOLINE)) += -Zretpoline-external-thunk \
					     -Zindirect-branch-cs-prefix \
					     -Cjump-tables=n
rust-flags-$(or $(CONFIG_MITIGATION_RETHUNK),$(CONFIG_RETHUNK)) += -Zfunction-return=thunk-extern
rust-flags-$(CONFIG_X86_KERNEL_IBT) += -Zcf-protection=branch
rust-flags-$(CONFIG_CALL_PADDING) += -Zpatchable-function-entry=$(CONFIG_FUNCTION_PADDING_BYTES),$(CONFIG_FUNCTION_PADDING_BYTES)
rust-flags-$(CONFIG_FUNCTION_ALIGNMENT_16B) += -Zmin-function-alignment=16
rust-flags-$(CONFIG_FRAME_POINTER) += -Cforce-frame-pointers=y

# RUSTC_BOOTSTRAP: the flags above are unstable in the compiler, as they are for
# the kernel's own Rust code.  Nothing of make's environment is for cargo.
rust-cargo = env -u MAKEFLAGS -u MFLAGS -u RUSTC -u RUSTFLAGS \
	     -u CARGO_ENCODED_RUSTFLAGS -u CARGO_BUILD_TARGET \
	     RUSTC_BOOTSTRAP=1 \
	     RUSTFLAGS="$(strip $(rust-flags) $(rust-flags-y))" \
	     cargo build --quiet --manifest-path $(src)/rust/Cargo.toml \
	     --lib --profile kernel --target $(rust-target) \
	     -Zbuild-std=core,compiler_builtins \
	     --target-dir $(abspath $(rust-dir))
