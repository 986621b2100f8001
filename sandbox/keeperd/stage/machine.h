// What differs between machines: the entry point of the binary, and system calls without a C library. It is a part of
// stage.c.

#ifndef GANTRY_STAGE_MACHINE_H
#define GANTRY_STAGE_MACHINE_H

#if defined(__x86_64__)
__asm__(".text\n.globl gantrystart\n.type gantrystart, @function\ngantrystart:\n"
	"	mov %rdx, %r12\n" // of the dynamic linker, for the C library
	"	mov %rsp, %rbx\n"
	"	mov %rsp, %rdi\n"
	"	and $-16, %rsp\n"
	"	call gantry_stage_entry\n"
	"	mov %rbx, %rsp\n"
	"	mov %r12, %rdx\n"
	"	xor %ebp, %ebp\n"
	"	jmp _start\n"
	".size gantrystart, .-gantrystart\n");

static long sys6(long n, long a, long b, long c, long d, long e, long f)
{
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return result;
}
#elif defined(__aarch64__)
__asm__(".text\n.globl gantrystart\n.type gantrystart, %function\ngantrystart:\n"
	"	mov x19, x0\n" // of the dynamic linker, for the C library
	"	mov x0, sp\n"
	"	bl gantry_stage_entry\n"
	"	mov x0, x19\n"
	"	mov x29, #0\n"
	"	mov x30, #0\n"
	"	b _start\n"
	".size gantrystart, .-gantrystart\n");

static long sys6(long n, long a, long b, long c, long d, long e, long f)
{
	register long x8 __asm__("x8") = n;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	register long x4 __asm__("x4") = e;
	register long x5 __asm__("x5") = f;

	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
	return x0;
}
#else
#error "no entry point for this architecture"
#endif

// sys makes a system call of up to six arguments; what is left out is 0.
#define SYS_ARGS(n, a, b, c, d, e, f, ...) \
	sys6(n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))
#define sys(...) SYS_ARGS(__VA_ARGS__, 0, 0, 0, 0, 0, 0, 0)

#endif
