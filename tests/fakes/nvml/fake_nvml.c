/* Stand-in for libnvidia-ml.so.1 whose GPUs draw the power that a file says: see edges.py, which writes it.
 *
 * Every reading is a function of the moment, the settings and the power's edges, so that nothing runs in the background:
 *
 *   tick  = the last refresh of the sensor before now
 *   power = gain * (1 + noise) * mean of the low-passed power over [tick - lag - window, tick - lag]
 *   count = offset + gain * energy until (tick - lag)
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { OK = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, DRIVER_NOT_LOADED = 9, IS_LOST = 15 };

typedef struct {
    int64_t t_ns, energy_pj; /* energy until t */
    uint32_t power_mw, label; /* power from t on */
} edge;

typedef struct { /* settings of a device; edges.py has the same fields in the same order */
    double refresh_ms, window_ms, average_window_ms, lag_ms, lowpass_tau_ms, jitter, gain, noise, call_delay_us;
    double counter_refresh_ms, counter_offset_mj, module_extra_w;
    uint64_t has_counter, has_fields, has_power, frozen_counter, error, partitioned, architecture;
    uint64_t limit_mw, min_limit_mw, max_limit_mw;
    char name[96], uuid[96], mig_uuid[96];
    volatile uint64_t num_edges;
} device;

typedef struct { uint64_t magic, num_devices, capacity, device_bytes, edges_at, init_error; } header;

static header *file;
static size_t file_bytes;
static int users;

static device *of(void *handle) { return (device *)((uintptr_t)handle & ~(uintptr_t)1); } /* odd: a MIG instance */
static int is_mig(void *handle) { return (uintptr_t)handle & 1; }
static device *nth(unsigned i) { return (device *)((char *)file + 4096 + i * file->device_bytes); }
static edge *edges_of(const device *d) {
    uint64_t i = ((char *)d - (char *)file - 4096) / file->device_bytes;
    return (edge *)((char *)file + file->edges_at) + i * file->capacity;
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* Index of the edge in force at t, -1 before the first. */
static int64_t edge_at(const device *d, int64_t t) {
    int64_t low = -1, high = d->num_edges;
    while (high - low > 1) {
        int64_t middle = low + (high - low) / 2;
        if (edges_of(d)[middle].t_ns <= t) low = middle; else high = middle;
    }
    return low;
}

static double true_mw(const device *d, int64_t t) {
    const int64_t i = edge_at(d, t);
    return i < 0 ? 0 : edges_of(d)[i].power_mw;
}

static double energy_pj(const device *d, int64_t t) { /* true energy until t, mW ns */
    int64_t i = edge_at(d, t);
    if (i < 0) return 0;
    const edge *e = edges_of(d) + i;
    return (double)e->energy_pj + (double)e->power_mw * (double)(t - e->t_ns);
}

static double lowpassed_mw(const device *d, int64_t t) { /* power behind a first-order low-pass */
    const double tau = d->lowpass_tau_ms * 1e6;
    double sum = 0, weight = 1; /* weight of all that is older than the edge in hand */
    for (int64_t i = edge_at(d, t); i >= 0 && weight > 1e-9; i--) {
        const edge *e = edges_of(d) + i;
        const double older = exp(-(double)(t - e->t_ns) / tau);
        sum += (weight - older) * e->power_mw;
        weight = older;
    }
    return sum;
}

static double mean_mw(const device *d, int64_t from, int64_t to) { /* of the low-passed power */
    const double tau = d->lowpass_tau_ms * 1e6;
    if (to <= from) return tau > 0 ? lowpassed_mw(d, to) : true_mw(d, to);
    double sum = energy_pj(d, to) - energy_pj(d, from);
    if (tau > 0) sum -= tau * (lowpassed_mw(d, to) - lowpassed_mw(d, from));
    return sum / (double)(to - from);
}

static double uniform(uint64_t x) { /* in (0, 1), always the same for the same x */
    x += 0x9E3779B97F4A7C15ULL;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
    return ((double)((x ^ (x >> 31)) >> 11) + 0.5) / 9007199254740992.0;
}

/* The last refresh before t; each one comes late by up to the jitter's share of a refresh. */
static int64_t last_tick(const device *d, double refresh_ms, int64_t t, uint64_t *number) {
    const int64_t refresh = (int64_t)(refresh_ms * 1e6);
    if (refresh <= 0) { *number = t; return t; }
    for (*number = t / refresh;; --*number) {
        int64_t tick = *number * refresh + (int64_t)(d->jitter * uniform(*number) * refresh);
        if (tick <= t) return tick;
    }
}

static uint64_t counter_mj(const device *d) {
    uint64_t number;
    const int64_t t = last_tick(d, d->counter_refresh_ms, now_ns(), &number) - (int64_t)(d->lag_ms * 1e6);
    if (d->frozen_counter) return d->counter_offset_mj;
    double mj = energy_pj(d, t) / 1e9;
    if (d->num_edges && t > edges_of(d)->t_ns) mj += d->module_extra_w * (t - edges_of(d)->t_ns) / 1e6;
    return d->counter_offset_mj + d->gain * mj;
}

static unsigned power_mw(const device *d, double window_ms) {
    uint64_t number;
    const int64_t to = last_tick(d, d->refresh_ms, now_ns(), &number) - (int64_t)(d->lag_ms * 1e6);
    const double normal = sqrt(-2 * log(uniform(2 * number))) * cos(2 * M_PI * uniform(2 * number + 1));
    const double mw = d->gain * (1 + d->noise * normal) * mean_mw(d, to - (int64_t)(window_ms * 1e6), to);
    return mw > 0 ? (unsigned)(mw + 0.5) : 0;
}

/* What every query of a device does first: wait as the driver would, and fail if the device does. */
static int begin(void *handle) {
    if (!file) return UNINITIALIZED;
    if (!handle) return INVALID;
    const double delay_us = of(handle)->call_delay_us;
    for (int64_t end = now_ns() + (int64_t)(delay_us * 1e3); delay_us > 0 && now_ns() < end;) {}
    return (int)of(handle)->error;
}
#define BEGIN(handle) do { int error = begin(handle); if (error) return error; } while (0)
#define WHOLE(handle) do { BEGIN(handle); if (is_mig(handle)) return NOT_SUPPORTED; } while (0)

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    const char *path = getenv("FAKE_NVML_EDGES");
    if (!file) {
        struct stat status;
        int descriptor = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
        if (descriptor < 0) return DRIVER_NOT_LOADED;
        fstat(descriptor, &status);
        file_bytes = status.st_size;
        file = mmap(NULL, file_bytes, PROT_READ, MAP_SHARED, descriptor, 0);
        close(descriptor);
        if (file == MAP_FAILED) { file = NULL; return DRIVER_NOT_LOADED; }
        int error = (int)file->init_error;
        if (error) { munmap(file, file_bytes); file = NULL; return error; }
    }
    users++;
    return OK;
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) {
    if (!file) return UNINITIALIZED;
    if (--users == 0) { munmap(file, file_bytes); file = NULL; }
    return OK;
}
const char *nvmlErrorString(int error) {
    static char words[40];
    snprintf(words, sizeof words, "fake NVML error %d", error);
    return words;
}
int nvmlSystemGetDriverVersion(char *text, unsigned length) { snprintf(text, length, "999.99"); return OK; }
int nvmlSystemGetNVMLVersion(char *text, unsigned length) { snprintf(text, length, "13.999.99"); return OK; }
int nvmlDeviceGetCount_v2(unsigned *count) {
    if (!file) return UNINITIALIZED;
    *count = (unsigned)file->num_devices;
    return OK;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    if (!file) return UNINITIALIZED;
    if (index >= file->num_devices) return INVALID;
    *handle = nth(index);
    return nth(index)->error == IS_LOST ? IS_LOST : OK;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle) {
    if (!file) return UNINITIALIZED;
    for (unsigned i = 0; i < file->num_devices; i++) {
        *handle = nth(i);
        if (!strcmp(uuid, nth(i)->uuid)) return OK;
        *handle = (char *)nth(i) + 1;
        if (nth(i)->partitioned && !strcmp(uuid, nth(i)->mig_uuid)) return OK;
    }
    return NOT_FOUND;
}
int nvmlDeviceGetName(void *h, char *text, unsigned length) { BEGIN(h); snprintf(text, length, "%s", of(h)->name); return OK; }
int nvmlDeviceGetUUID(void *h, char *text, unsigned length) {
    BEGIN(h);
    snprintf(text, length, "%s", is_mig(h) ? of(h)->mig_uuid : of(h)->uuid);
    return OK;
}
int nvmlDeviceGetIndex(void *h, unsigned *index) {
    BEGIN(h);
    *index = ((char *)of(h) - (char *)nth(0)) / file->device_bytes;
    return OK;
}
int nvmlDeviceGetMinorNumber(void *h, unsigned *number) { return nvmlDeviceGetIndex(h, number); }
int nvmlDeviceGetArchitecture(void *h, unsigned *value) { BEGIN(h); *value = of(h)->architecture; return OK; }
int nvmlDeviceGetPowerUsage(void *h, unsigned *mw) {
    WHOLE(h);
    if (!of(h)->has_power) return NOT_SUPPORTED;
    *mw = power_mw(of(h), of(h)->window_ms);
    return OK;
}
int nvmlDeviceGetTotalEnergyConsumption(void *h, unsigned long long *mj) {
    WHOLE(h);
    if (!of(h)->has_counter) return NOT_SUPPORTED;
    *mj = counter_mj(of(h));
    return OK;
}
typedef struct {
    unsigned field, scope;
    long long timestamp, latency_us;
    unsigned type;
    int error;
    union { double d; unsigned u; unsigned long long ull; } value;
} field_value;
int nvmlDeviceGetFieldValues(void *h, int count, field_value *values) {
    BEGIN(h);
    for (field_value *v = values; v < values + count; v++) {
        const int power = v->field == 185 || v->field == 186, module = v->scope == 1 && of(h)->module_extra_w > 0;
        v->type = 1;
        v->error = power && of(h)->has_fields && !is_mig(h) && (v->scope == 0 || module) ? OK : NOT_SUPPORTED;
        if (v->error) continue;
        v->value.u = power_mw(of(h), v->field == 185 ? of(h)->average_window_ms : of(h)->window_ms);
        if (module) v->value.u += 1000 * of(h)->module_extra_w;
    }
    return OK;
}
int nvmlDeviceGetEnforcedPowerLimit(void *h, unsigned *mw) { WHOLE(h); *mw = of(h)->limit_mw; return OK; }
int nvmlDeviceGetPowerManagementLimit(void *h, unsigned *mw) { WHOLE(h); *mw = of(h)->limit_mw; return OK; }
int nvmlDeviceGetPowerManagementDefaultLimit(void *h, unsigned *mw) { WHOLE(h); *mw = of(h)->max_limit_mw; return OK; }
int nvmlDeviceGetPowerManagementLimitConstraints(void *h, unsigned *min, unsigned *max) {
    WHOLE(h);
    *min = of(h)->min_limit_mw;
    *max = of(h)->max_limit_mw;
    return OK;
}
int nvmlDeviceGetC2cModeInfoV(void *h, unsigned *enabled) {
    BEGIN(h);
    *enabled = 1;
    return of(h)->module_extra_w > 0 ? OK : NOT_SUPPORTED;
}
int nvmlDeviceGetMigMode(void *h, unsigned *now, unsigned *pending) { WHOLE(h); *now = *pending = of(h)->partitioned; return OK; }
int nvmlDeviceIsMigDeviceHandle(void *h, unsigned *yes) { BEGIN(h); *yes = is_mig(h); return OK; }
int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(void *h, void **parent) { BEGIN(h); *parent = of(h); return is_mig(h) ? OK : INVALID; }
int nvmlDeviceGetMaxMigDeviceCount(void *h, unsigned *count) { BEGIN(h); *count = of(h)->partitioned; return OK; }
int nvmlDeviceGetMigDeviceHandleByIndex(void *h, unsigned index, void **instance) {
    WHOLE(h);
    *instance = (char *)h + 1;
    return index < of(h)->partitioned ? OK : NOT_FOUND;
}
/* What CodeCarbon and Zeus ask besides. */
int nvmlDeviceGetMemoryInfo(void *h, unsigned long long *sizes) {
    BEGIN(h);
    sizes[0] = 40ULL << 30, sizes[1] = 30ULL << 30, sizes[2] = 10ULL << 30;
    return OK;
}
int nvmlDeviceGetUtilizationRates(void *h, unsigned *rates) { WHOLE(h); rates[0] = rates[1] = 50; return OK; }
int nvmlDeviceGetTemperature(void *h, unsigned sensor, unsigned *degrees) { WHOLE(h); (void)sensor; *degrees = 50; return OK; }
int nvmlDeviceGetTemperatureV(void *h, unsigned *query) { WHOLE(h); query[2] = 50; return OK; }
int nvmlDeviceGetComputeMode(void *h, unsigned *mode) { BEGIN(h); *mode = 0; return OK; }
int nvmlDeviceGetPersistenceMode(void *h, unsigned *mode) { BEGIN(h); *mode = 1; return OK; }
int nvmlDeviceGetComputeRunningProcesses_v3(void *h, unsigned *count, void *list) { BEGIN(h); (void)list; *count = 0; return OK; }
int nvmlDeviceGetGraphicsRunningProcesses_v3(void *h, unsigned *count, void *list) { BEGIN(h); (void)list; *count = 0; return OK; }
