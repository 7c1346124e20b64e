/* LD_PRELOAD: aligned allocations, among them all of torch's CPU tensors, lie at addresses that differ from call to call.
 *
 * Kernels choose vector paths and block sizes by alignment, so that sums may be added in another order: results that are
 * equal in bits only because two buffers happened to lie alike are found by running the tests under this library.
 * The shift is a multiple of 64 bytes below 4 KiB, as torch asks for 64; a header before each block says where it begins.
 *
 *     cc -O2 -shared -fPIC -o shifting_allocator.so shifting_allocator.c -ldl
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <malloc.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

extern void *__libc_memalign(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void __libc_free(void *);

enum { STEP = 64, STEPS = 64 };
static const uint64_t MARK = 0x7065726a6f756c65u; /* "perjoule" */
static atomic_uint calls;

typedef struct {
    void *block;
    uint64_t mark; /* lies where glibc keeps the size of a chunk, so that no chunk of glibc can carry it */
} header;

static header *header_of(void *pointer) { return (header *)pointer - 1; }

static int is_shifted(void *pointer) {
    return pointer && (uintptr_t)pointer % STEP == 0 && header_of(pointer)->mark == (MARK ^ (uintptr_t)pointer);
}

int posix_memalign(void **result, size_t alignment, size_t size) {
    if (alignment > STEP || size > SIZE_MAX - STEP * (STEPS + 1)) {
        void *plain = __libc_memalign(alignment, size);
        if (!plain) return ENOMEM;
        *result = plain;
        return 0;
    }
    size_t shift = STEP * (1 + (atomic_fetch_add(&calls, 1) * 37u) % STEPS); /* 37 and 64 share no factor: all shifts come */
    char *block = __libc_memalign(STEP, size + shift);
    if (!block) return ENOMEM;
    char *shifted = block + shift;
    *header_of(shifted) = (header){block, MARK ^ (uintptr_t)shifted};
    *result = shifted;
    return 0;
}

void free(void *pointer) {
    if (!is_shifted(pointer)) {
        __libc_free(pointer);
        return;
    }
    void *block = header_of(pointer)->block;
    header_of(pointer)->mark = 0;
    __libc_free(block);
}

size_t malloc_usable_size(void *pointer) {
    static size_t (*original)(void *);
    if (!original) original = (size_t (*)(void *))dlsym(RTLD_NEXT, "malloc_usable_size");
    if (!is_shifted(pointer)) return original(pointer);
    char *block = header_of(pointer)->block;
    return original(block) - (size_t)((char *)pointer - block);
}

void *realloc(void *pointer, size_t size) {
    if (!is_shifted(pointer)) return __libc_realloc(pointer, size);
    size_t before = malloc_usable_size(pointer);
    void *moved = __libc_realloc(NULL, size);
    if (!moved) return NULL;
    memcpy(moved, pointer, before < size ? before : size);
    free(pointer);
    return moved;
}
