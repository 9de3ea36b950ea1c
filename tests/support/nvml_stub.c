/* A libnvidia-ml.so.1 without a driver, for tests: it gives what the file named by STUB_NVML says, read again when it changes.
 *
 *   devices 8                      so many devices
 *   moving                         utilisation, power and memory change every second
 *   fail 3 nvmlDeviceGetFanSpeed 3   that function of device 3 returns 3 (not supported); * for every function or device
 *   hang 4 nvmlDeviceGetPowerUsage   that call does not come back while the line is there
 *   process 0 4711 1048576         process 4711 uses so many bytes on device 0
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#define LIMIT 64
#define OK 0
#define INVALID_ARGUMENT 2
#define NOT_SUPPORTED 3
#define NOT_FOUND 6
#define INSUFFICIENT_SIZE 7
#define GPU_IS_LOST 15
#define GIB (1ull << 30)

typedef unsigned int uint;
typedef unsigned long long u64;
typedef struct { uint version; u64 total, reserved, free, used; } memory_v2;
typedef struct { u64 total, free, used; } memory_v1;
typedef struct { char legacy[16]; uint domain, bus, device, id, subsystem; char bus_id[32]; } pci_info;
typedef struct { uint pid; u64 used; uint gpu_instance, compute_instance; } process_info;
typedef struct { uint pid; u64 time; uint sm, memory, encoder, decoder; } process_sample;
typedef struct { char verb; int device; char name[64]; u64 a, b; } rule;

static rule rules[LIMIT];
static int rule_count, device_count = 1, is_moving;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void read_rules(void) {
    static ino_t inode;
    static struct timespec written;  /* too: a freed inode is soon used again */
    const char *path = getenv("STUB_NVML");
    struct stat found;
    if (path == NULL || stat(path, &found) != 0) return;
    if (found.st_ino == inode && memcmp(&found.st_mtim, &written, sizeof written) == 0) return;
    FILE *file = fopen(path, "r");
    if (file == NULL) return;
    inode = found.st_ino;
    written = found.st_mtim;
    rule_count = is_moving = 0;
    char line[256], verb[16], device[16];
    while (fgets(line, sizeof line, file) != NULL && rule_count < LIMIT) {
        rule *next = &rules[rule_count];
        memset(next, 0, sizeof *next);
        if (sscanf(line, "devices %d", &device_count) == 1) continue;
        if (strncmp(line, "moving", 6) == 0) { is_moving = 1; continue; }
        if (sscanf(line, "%15s %15s %63s %llu", verb, device, next->name, &next->b) < 3) continue;
        next->verb = verb[0];
        next->device = device[0] == '*' ? -1 : atoi(device);
        next->a = strtoull(next->name, NULL, 10);
        rule_count++;
    }
    fclose(file);
}

/* The rule for a call, copied: 1 when there is one. */
static int ruled(char verb, int device, const char *name, rule *out) {
    int found = 0;
    pthread_mutex_lock(&lock);
    read_rules();
    for (int i = 0; i < rule_count && !found; i++) {
        rule *r = &rules[i];
        if (r->verb != verb || (r->device >= 0 && r->device != device)) continue;
        if (strcmp(r->name, "*") != 0 && strcmp(r->name, name) != 0) continue;
        *out = *r;
        found = 1;
    }
    pthread_mutex_unlock(&lock);
    return found;
}

static int enter(int device, const char *name) {
    rule r;
    struct timespec pause = {0, 20000000};
    while (ruled('h', device, name, &r)) nanosleep(&pause, NULL);
    return ruled('f', device, name, &r) ? (int)r.b : OK;
}

static int index_of(void *handle) { return (int)(size_t)handle - 1; }

/* A value between 0 and 1 of a device: the same for ever, or for a second. */
static double level(int device, int salt) {
    if (!is_moving) return (device % 10 + 1) / 10.0;
    uint x = (uint)time(NULL) * 2654435761u ^ (uint)(device * 97 + salt) * 40503u;
    x ^= x >> 13; x *= 0x5bd1e995u; x ^= x >> 15;
    double base = ((device * 37 + 11) % 90) / 100.0 + 0.05;
    return base + (x % 9) / 200.0;
}

#define ENTER(handle) do { int ret = enter(index_of(handle), __func__); if (ret != OK) return ret; } while (0)

int nvmlInitWithFlags(uint flags) { (void)flags; return enter(-1, __func__); }
int nvmlInit_v2(void) { return OK; }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code) {
    switch (code) {
        case NOT_SUPPORTED: return "Not Supported";
        case 4: return "Insufficient Permissions";
        case GPU_IS_LOST: return "GPU is lost";
        default: return "Unknown Error";
    }
}
static int text(char *out, uint size, const char *value) { snprintf(out, size, "%s", value); return OK; }
int nvmlSystemGetDriverVersion(char *out, uint size) { return text(out, size, "570.86"); }
int nvmlSystemGetNVMLVersion(char *out, uint size) { return text(out, size, "12.570.86"); }
int nvmlSystemGetCudaDriverVersion(int *out) { *out = 12080; return OK; }
int nvmlSystemGetCudaDriverVersion_v2(int *out) { *out = 12080; return OK; }
int nvmlDeviceGetCount_v2(uint *out) {
    int ret = enter(-1, __func__);
    *out = (uint)device_count;
    return ret;
}
int nvmlDeviceGetHandleByIndex_v2(uint index, void **out) {
    int ret = enter((int)index, __func__);
    if (ret != OK) return ret;
    if (index >= (uint)device_count) return INVALID_ARGUMENT;
    *out = (void *)(size_t)(index + 1);
    return OK;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, void **out) {
    int index;
    if (sscanf(uuid, "GPU-00000000-0000-4000-8000-%12x", (uint *)&index) != 1) return NOT_FOUND;
    return nvmlDeviceGetHandleByIndex_v2((uint)index, out);
}
int nvmlDeviceGetHandleByPciBusId_v2(const char *bus, void **out) {
    uint index;
    return sscanf(bus, "00000000:%2x", &index) == 1 ? nvmlDeviceGetHandleByIndex_v2(index - 1, out) : NOT_FOUND;
}
int nvmlDeviceGetIndex(void *h, uint *out) { ENTER(h); *out = (uint)index_of(h); return OK; }
int nvmlDeviceGetName(void *h, char *out, uint size) { ENTER(h); return text(out, size, "NVIDIA Stub 80GB"); }
int nvmlDeviceGetUUID(void *h, char *out, uint size) {
    ENTER(h);
    snprintf(out, size, "GPU-00000000-0000-4000-8000-%012x", (uint)index_of(h));
    return OK;
}
int nvmlDeviceGetSerial(void *h, char *out, uint size) { ENTER(h); return text(out, size, "123"); }
int nvmlDeviceGetPciInfo_v3(void *h, pci_info *out) {
    ENTER(h);
    memset(out, 0, sizeof *out);
    out->bus = (uint)index_of(h) + 1;
    snprintf(out->legacy, sizeof out->legacy, "0000:%02X:00.0", out->bus);
    snprintf(out->bus_id, sizeof out->bus_id, "00000000:%02X:00.0", out->bus);
    return OK;
}
static u64 used(void *h) { return (u64)(level(index_of(h), 1) * 64) * GIB; }
int nvmlDeviceGetMemoryInfo(void *h, memory_v1 *out) {
    ENTER(h);
    *out = (memory_v1){80 * GIB, 80 * GIB - used(h), used(h)};
    return OK;
}
int nvmlDeviceGetMemoryInfo_v2(void *h, memory_v2 *out) {
    int ret = enter(index_of(h), "nvmlDeviceGetMemoryInfo");
    if (ret != OK) return ret;
    out->total = 80 * GIB, out->reserved = 0, out->used = used(h), out->free = 80 * GIB - used(h);
    return OK;
}
int nvmlDeviceGetBAR1MemoryInfo(void *h, memory_v1 *out) { return nvmlDeviceGetMemoryInfo(h, out); }
int nvmlDeviceGetUtilizationRates(void *h, uint *out) {
    ENTER(h);
    out[0] = (uint)(level(index_of(h), 0) * 100), out[1] = out[0] / 2;
    return OK;
}
int nvmlDeviceGetEncoderUtilization(void *h, uint *out, uint *period) { ENTER(h); *out = *period = 0; return OK; }
int nvmlDeviceGetDecoderUtilization(void *h, uint *out, uint *period) { ENTER(h); *out = *period = 0; return OK; }
int nvmlDeviceGetClockInfo(void *h, uint kind, uint *out) { ENTER(h); *out = kind == 2 ? 2619 : 1980; return OK; }
int nvmlDeviceGetMaxClockInfo(void *h, uint kind, uint *out) { ENTER(h); *out = kind == 2 ? 2619 : 1980; return OK; }
int nvmlDeviceGetFanSpeed(void *h, uint *out) { ENTER(h); *out = 40; return OK; }
int nvmlDeviceGetTemperature(void *h, uint sensor, uint *out) {
    (void)sensor;
    ENTER(h);
    *out = 30 + (uint)(level(index_of(h), 2) * 40);
    return OK;
}
int nvmlDeviceGetPowerUsage(void *h, uint *out) {
    ENTER(h);
    *out = 70000 + (uint)(level(index_of(h), 3) * 600) * 1000;
    return OK;
}
int nvmlDeviceGetPowerManagementLimit(void *h, uint *out) { ENTER(h); *out = 700000; return OK; }
int nvmlDeviceGetTotalEnergyConsumption(void *h, u64 *out) { ENTER(h); *out = 5000000000ull + (u64)index_of(h); return OK; }
int nvmlDeviceGetDriverModel(void *h, uint *now, uint *next) { ENTER(h); *now = *next = 0; return NOT_SUPPORTED; }
int nvmlDeviceGetDisplayActive(void *h, uint *out) { ENTER(h); *out = 0; return OK; }
int nvmlDeviceGetDisplayMode(void *h, uint *out) { ENTER(h); *out = 0; return OK; }
int nvmlDeviceGetPersistenceMode(void *h, uint *out) { ENTER(h); *out = 1; return OK; }
int nvmlDeviceGetPerformanceState(void *h, uint *out) { ENTER(h); *out = 0; return OK; }
int nvmlDeviceGetComputeMode(void *h, uint *out) { ENTER(h); *out = 0; return OK; }
int nvmlDeviceGetMigMode(void *h, uint *now, uint *next) { ENTER(h); *now = *next = 0; return NOT_SUPPORTED; }
int nvmlDeviceIsMigDeviceHandle(void *h, uint *out) { ENTER(h); *out = 0; return OK; }
int nvmlDeviceGetCudaComputeCapability(void *h, int *major, int *minor) { ENTER(h); *major = 9, *minor = 0; return OK; }
int nvmlDeviceGetTotalEccErrors(void *h, uint type, uint counter, u64 *out) {
    (void)type, (void)counter;
    ENTER(h);
    *out = 0;
    return OK;
}
int nvmlDeviceGetPcieThroughput(void *h, uint kind, uint *out) { (void)kind; ENTER(h); *out = 0; return OK; }
int nvmlDeviceGetFieldValues(void *h, int count, void *values) {
    (void)count, (void)values;
    ENTER(h);
    return NOT_SUPPORTED;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *h, uint *count, process_info *out) {
    ENTER(h);
    uint room = *count, found = 0;
    pthread_mutex_lock(&lock);
    read_rules();
    for (int i = 0; i < rule_count; i++)
        if (rules[i].verb == 'p' && rules[i].device == index_of(h)) {
            if (found < room && out != NULL) out[found] = (process_info){(uint)rules[i].a, rules[i].b, ~0u, ~0u};
            found++;
        }
    pthread_mutex_unlock(&lock);
    *count = found;
    return found > room ? INSUFFICIENT_SIZE : OK;
}
int nvmlDeviceGetGraphicsRunningProcesses_v3(void *h, uint *count, process_info *out) {
    (void)out;
    ENTER(h);
    *count = 0;
    return OK;
}
int nvmlDeviceGetProcessUtilization(void *h, process_sample *out, uint *count, u64 since) {
    (void)out, (void)since;
    ENTER(h);
    *count = 0;
    return NOT_FOUND;
}
