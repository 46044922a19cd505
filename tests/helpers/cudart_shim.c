/* CUDA's runtime without a GPU: the calls of export/cuda.py on host memory. Fails on request: CUDART_FAILS=<call>. */
#include <stdlib.h>
#include <string.h>

static long live;

static int fails(const char *call) {
    const char *wanted = getenv("CUDART_FAILS");
    return wanted != NULL && strcmp(wanted, call) == 0 ? 2 : 0;
}

long shim_live(void) { return live; }

const char *cudaGetErrorString(int code) { return code == 2 ? "out of memory" : "unknown"; }

int cudaDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    *value = attribute == 75 ? 8 : 7;
    return fails("cudaDeviceGetAttribute");
}

int cudaMalloc(void **address, size_t size) {
    if (fails("cudaMalloc")) return 2;
    *address = malloc(size);
    live += 1;
    return 0;
}

int cudaFree(void *address) {
    free(address);
    live -= 1;
    return 0;
}

int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) {
    (void)kind;
    (void)stream;
    memcpy(to, from, size);
    return fails("cudaMemcpyAsync");
}

int cudaStreamCreate(void **stream) {
    *stream = malloc(1);
    return 0;
}

int cudaStreamSynchronize(void *stream) { (void)stream; return fails("cudaStreamSynchronize"); }

int cudaStreamDestroy(void *stream) {
    free(stream);
    return 0;
}
