# Entry of the guest, start of further processors, entry of interrupts. AT&T syntax.
#
# QEMU enters at pvh_start in 32-bit protected mode, without paging, with the physical address of
# the start information in ebx (the PVH boot protocol).

.section .note.pvh, "a", @note
    .balign 4
    .long 4                         # bytes of the name
    .long 4                         # bytes of what follows it
    .long 18                        # entry point, 32 bits, physical
    .asciz "Xen"
    .long pvh_start

.section .text.boot, "ax"
.code32
.global pvh_start
pvh_start:
    cli
    cld
    movl $boot_stack_end, %esp
    movl %ebx, %esi
    # The first 4 GiB, one to one, in large pages: only until the guest has its own tables.
    movl $boot_pdpt + 3, boot_pml4
    movl $boot_pd + 0x0003, boot_pdpt
    movl $boot_pd + 0x1003, boot_pdpt + 8
    movl $boot_pd + 0x2003, boot_pdpt + 16
    movl $boot_pd + 0x3003, boot_pdpt + 24
    xorl %ecx, %ecx
1:
    movl %ecx, %eax
    shll $21, %eax
    orl $0x83, %eax
    movl %eax, boot_pd(,%ecx,8)
    movl $0, boot_pd + 4(,%ecx,8)
    incl %ecx
    cmpl $2048, %ecx
    jb 1b
    movl $boot_pml4, %eax
    call to_long
    lgdtl gdt_pointer
    ljmpl $0x08, $start64

# Switches paging and long mode on, with the tables in eax. Uses ecx and edx.
to_long:
    movl %eax, %cr3
    movl %cr4, %eax
    orl $0x20, %eax                 # physical address extension
    movl %eax, %cr4
    movl $0xc0000080, %ecx          # EFER: long mode, no-execute
    rdmsr
    orl $0x900, %eax
    wrmsr
    movl %cr0, %eax
    orl $0x80010001, %eax           # paging, write protection, protected mode
    movl %eax, %cr0
    ret

.code64
start64:
    call data_segments
    movl $boot_stack_end, %esp
    movl %esi, %edi
    xorl %ebp, %ebp
    call guest_main
stop:
    cli
    hlt
    jmp stop

data_segments:
    movl $0x10, %eax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movw %ax, %fs
    movw %ax, %gs
    ret

# Copied below the first MiB, where a processor starts in real mode. Addresses are those there.
.set TRAMPOLINE, 0x8000
.code16
.global ap_trampoline, ap_trampoline_end, ap_tables, ap_stack
ap_trampoline:
    cli
    cld
    xorw %ax, %ax
    movw %ax, %ds
    lgdtl TRAMPOLINE + ap_gdt - ap_trampoline
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $0x18, $(TRAMPOLINE + ap_protected - ap_trampoline)
.code32
ap_protected:
    movl $0x10, %eax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movl TRAMPOLINE + ap_stack - ap_trampoline, %esp
    movl TRAMPOLINE + ap_tables - ap_trampoline, %eax
    movl $to_long, %ebx
    call *%ebx
    ljmpl $0x08, $ap_start64
    .balign 8
ap_gdt:
    .word gdt_end - gdt - 1
    .long gdt
    .balign 8
ap_tables:
    .long 0
ap_stack:
    .long 0
ap_trampoline_end:

.code64
ap_start64:
    call data_segments
    movl %esp, %esp
    xorl %ebp, %ebp
    call processor_main
    jmp stop

# One entry for each vector, 16 bytes apart. Vectors without an error code of their own get 0, so
# that all look alike.
.balign 16
.global interrupt_entries
interrupt_entries:
.set vector, 0
.rept 256
    .balign 16
    .if (vector == 8) || (vector == 10) || (vector == 11) || (vector == 12) || (vector == 13) || (vector == 14) || (vector == 17) || (vector == 21) || (vector == 29) || (vector == 30)
    .else
    pushq $0
    .endif
    pushq $vector
    jmp interrupt_common
    .set vector, vector + 1
.endr

# The code keeps everything in general registers: the target has no vector registers in use.
.balign 16
interrupt_common:
    pushq %rax
    pushq %rcx
    pushq %rdx
    pushq %rsi
    pushq %rdi
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    cld
    movq 72(%rsp), %rdi             # vector
    movq 80(%rsp), %rsi             # error code
    movq 88(%rsp), %rdx             # where it happened
    call interrupt_main
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rdi
    popq %rsi
    popq %rdx
    popq %rcx
    popq %rax
    addq $16, %rsp
    iretq

.section .rodata.boot, "a"
    .balign 8
gdt:
    .quad 0
    .quad 0x00af9b000000ffff        # 0x08: 64-bit code
    .quad 0x00cf93000000ffff        # 0x10: data
    .quad 0x00cf9b000000ffff        # 0x18: 32-bit code
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt

.section .bss.boot, "aw", @nobits
    .balign 4096
boot_pml4:
    .skip 4096
boot_pdpt:
    .skip 4096
boot_pd:
    .skip 4 * 4096
boot_stack:
    .skip 256 * 1024
boot_stack_end:
