/* A libnvidia-ml.so.1 without a driver, for tests: it gives what the file named by STUB_NVML says, read again when it changes.
 *
 *   devices 8                      so many devices
 *   moving                         utilisation, power and memory change every second
 *   fail 3 nvmlDeviceGetFanSpeed 3   that function of device 3 returns 3 (not supported); * for every function or device
 *   hang 4 nvmlDeviceGetPowerUsage   that call does not come back while the line is there
 *   process 0 4711 1048576         process 4711 uses so many bytes on device 0
 *   share 0 4711 37                and so many per cent of its SMs
 *   value 0 field4 7               that field value (NVML_FI_DEV_*) of device 0 is 7; also clock_events, pstate, gpm2 ...
 *   fail 0 field82 3               that field value is not supported
 *   mig 0 2                        device 0 is in MIG mode with two instances
 *   xid 0 79 [7]                   device 0 (its MIG instance 7) reports that XID, once after each change of the file
 *   nvswitch 18                    every device has so many NVLinks to switches
 *   link 0 1 4                     devices 0 and 1 are joined by so many NVLinks
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#define LIMIT 512
#define LINKS 18
#define OK 0
#define TIMEOUT 10
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
typedef struct { uint id, scope; long long time, latency; uint type; int ret; union { double d; u64 u; } value; } field;
typedef struct { uint id; int ret; double value; char *names[3]; } gpm_metric;
typedef struct { uint version, count; double *older, *newer; gpm_metric metrics[]; } gpm_request;
typedef struct { void *device; u64 type, data; uint gpu_instance, compute_instance; } event;
typedef struct { char verb; int device; char name[64]; u64 a, b; } rule;

static rule rules[LIMIT];
static int rule_count, device_count = 1, is_moving, switch_links, xids_told;
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
    rule_count = is_moving = switch_links = xids_told = 0;
    char line[256], verb[16], device[16];
    while (fgets(line, sizeof line, file) != NULL && rule_count < LIMIT) {
        rule *next = &rules[rule_count];
        memset(next, 0, sizeof *next);
        if (sscanf(line, "devices %d", &device_count) == 1) continue;
        if (sscanf(line, "nvswitch %d", &switch_links) == 1) continue;
        if (strncmp(line, "moving", 6) == 0) { is_moving = 1; continue; }
        if (sscanf(line, "%15s %15s %63s %llu", verb, device, next->name, &next->b) < 3) continue;
        next->verb = verb[0];
        next->device = device[0] == '*' ? -1 : atoi(device);
        next->a = strtoull(next->name, NULL, 10);
        rule_count++;
    }
    fclose(file);
}

/* The rule for a call, copied: 1 when there is one. Any of `verbs`, the earliest line. */
static int ruled(const char *verbs, int device, const char *name, rule *out) {
    int found = 0;
    pthread_mutex_lock(&lock);
    read_rules();
    for (int i = 0; i < rule_count && !found; i++) {
        rule *r = &rules[i];
        if (strchr(verbs, r->verb) == NULL || (r->device >= 0 && r->device != device)) continue;
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
    while (ruled("hf", device, name, &r)) {
        if (r.verb == 'f') return (int)r.b;
        nanosleep(&pause, NULL);
    }
    return OK;
}

/* What a line says of a value, else `given`. */
static u64 value_of(int device, const char *name, u64 given) {
    rule r;
    return ruled("v", device, name, &r) ? r.b : given;
}

/* A handle is the device's number from 1, and above it that of its MIG instance. */
static int index_of(void *handle) { return (int)((size_t)handle & 0xffff) - 1; }
static int instance_of(void *handle) { return (int)((size_t)handle >> 16); }
static int instances(int device) {
    int found = 0;
    pthread_mutex_lock(&lock);
    read_rules();
    for (int i = 0; i < rule_count; i++)
        if (rules[i].verb == 'm' && rules[i].device == device) found = (int)rules[i].a;
    pthread_mutex_unlock(&lock);
    return found;
}

/* A value between 0 and 1 of a device: the same for ever, or for a second. */
static double level(int device, int salt) {
    if (!is_moving) return (device % 10 + 1) / 10.0;
    uint x = (uint)time(NULL) * 2654435761u ^ (uint)(device * 97 + salt) * 40503u;
    x ^= x >> 13; x *= 0x5bd1e995u; x ^= x >> 15;
    double base = ((device * 37 + 11) % 90) / 100.0 + 0.05;
    return base + (x % 9) / 200.0;
}

#define ENTER(handle) do { int ret = enter(index_of(handle), __func__); if (ret != OK) return ret; } while (0)
/* What only whole GPUs know. */
#define WHOLE(handle) do { ENTER(handle); if (instance_of(handle)) return NOT_SUPPORTED; } while (0)

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
    uint index, instance;
    if (sscanf(uuid, "MIG-00000000-0000-4000-8%3x-%12x", &instance, &index) == 2) {
        *out = (void *)((size_t)(index + 1) | (size_t)instance << 16);
        return OK;
    }
    if (sscanf(uuid, "GPU-00000000-0000-4000-8000-%12x", &index) != 1) return NOT_FOUND;
    return nvmlDeviceGetHandleByIndex_v2(index, out);
}
int nvmlDeviceGetHandleByPciBusId_v2(const char *bus, void **out) {
    uint index;
    return sscanf(bus, "00000000:%2x", &index) == 1 ? nvmlDeviceGetHandleByIndex_v2(index - 1, out) : NOT_FOUND;
}
int nvmlDeviceGetIndex(void *h, uint *out) { ENTER(h); *out = (uint)index_of(h); return OK; }
int nvmlDeviceGetName(void *h, char *out, uint size) { ENTER(h); return text(out, size, instance_of(h) ? "NVIDIA Stub 80GB MIG 1g.10gb" : "NVIDIA Stub 80GB"); }
int nvmlDeviceGetUUID(void *h, char *out, uint size) {
    ENTER(h);
    if (instance_of(h)) snprintf(out, size, "MIG-00000000-0000-4000-8%03x-%012x", (uint)instance_of(h), (uint)index_of(h));
    else snprintf(out, size, "GPU-00000000-0000-4000-8000-%012x", (uint)index_of(h));
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
    u64 total = (instance_of(h) ? 10 : 80) * GIB, taken = instance_of(h) ? GIB : used(h);
    *out = (memory_v1){total, total - taken, taken};
    return OK;
}
int nvmlDeviceGetMemoryInfo_v2(void *h, memory_v2 *out) {
    int ret = enter(index_of(h), "nvmlDeviceGetMemoryInfo");
    if (ret != OK) return ret;
    out->total = (instance_of(h) ? 10 : 80) * GIB, out->reserved = 0;
    out->used = instance_of(h) ? GIB : used(h), out->free = out->total - out->used;
    return OK;
}
int nvmlDeviceGetBAR1MemoryInfo(void *h, memory_v1 *out) {
    WHOLE(h);
    *out = (memory_v1){128 * GIB, 127 * GIB, GIB};
    return OK;
}
int nvmlDeviceGetUtilizationRates(void *h, uint *out) {
    WHOLE(h);
    out[0] = (uint)(level(index_of(h), 0) * 100), out[1] = out[0] / 2;
    return OK;
}
#define UTILISATION(name, percent) \
    int name(void *h, uint *out, uint *period) { WHOLE(h); *out = percent; *period = 167000; return OK; }
UTILISATION(nvmlDeviceGetEncoderUtilization, 11)
UTILISATION(nvmlDeviceGetDecoderUtilization, 12)
UTILISATION(nvmlDeviceGetJpgUtilization, 13)
UTILISATION(nvmlDeviceGetOfaUtilization, 14)
/* Graphics, SM, memory, video. */
static const uint clocks[] = {1965, 1980, 2619, 1770};
int nvmlDeviceGetClockInfo(void *h, uint kind, uint *out) { WHOLE(h); *out = clocks[kind & 3]; return OK; }
int nvmlDeviceGetMaxClockInfo(void *h, uint kind, uint *out) { WHOLE(h); *out = clocks[kind & 3] + 5; return OK; }
int nvmlDeviceGetFanSpeed(void *h, uint *out) { WHOLE(h); *out = 40; return OK; }
int nvmlDeviceGetTemperature(void *h, uint sensor, uint *out) {
    (void)sensor;
    WHOLE(h);
    *out = 30 + (uint)(level(index_of(h), 2) * 40);
    return OK;
}
int nvmlDeviceGetTemperatureThreshold(void *h, uint kind, uint *out) { WHOLE(h); *out = kind == 0 ? 92 : 87; return OK; }
int nvmlDeviceGetPowerUsage(void *h, uint *out) {
    WHOLE(h);
    *out = 70000 + (uint)(level(index_of(h), 3) * 600) * 1000;
    return OK;
}
int nvmlDeviceGetPowerManagementLimit(void *h, uint *out) { WHOLE(h); *out = 650000; return OK; }
int nvmlDeviceGetPowerManagementLimitConstraints(void *h, uint *least, uint *most) {
    WHOLE(h);
    *least = 200000, *most = 700000;
    return OK;
}
int nvmlDeviceGetTotalEnergyConsumption(void *h, u64 *out) { WHOLE(h); *out = 5000000000ull + (u64)index_of(h); return OK; }
int nvmlDeviceGetCurrPcieLinkGeneration(void *h, uint *out) { WHOLE(h); *out = 5; return OK; }
int nvmlDeviceGetCurrPcieLinkWidth(void *h, uint *out) { WHOLE(h); *out = 8; return OK; }
int nvmlDeviceGetMaxPcieLinkGeneration(void *h, uint *out) { WHOLE(h); *out = 5; return OK; }
int nvmlDeviceGetMaxPcieLinkWidth(void *h, uint *out) { WHOLE(h); *out = 16; return OK; }
int nvmlDeviceGetCurrentClocksEventReasons(void *h, u64 *out) {
    WHOLE(h);
    *out = value_of(index_of(h), "clock_events", 4);
    return OK;
}
int nvmlDeviceGetCurrentClocksThrottleReasons(void *h, u64 *out) { WHOLE(h); *out = 8; return OK; }
int nvmlDeviceGetDriverModel(void *h, uint *now, uint *next) { ENTER(h); *now = *next = 0; return NOT_SUPPORTED; }
int nvmlDeviceGetDisplayActive(void *h, uint *out) { ENTER(h); *out = 0; return OK; }
int nvmlDeviceGetDisplayMode(void *h, uint *out) { ENTER(h); *out = 0; return OK; }
int nvmlDeviceGetPersistenceMode(void *h, uint *out) { ENTER(h); *out = 1; return OK; }
int nvmlDeviceGetPerformanceState(void *h, uint *out) {
    WHOLE(h);
    *out = (uint)value_of(index_of(h), "pstate", 2);
    return OK;
}
int nvmlDeviceGetComputeMode(void *h, uint *out) { ENTER(h); *out = 0; return OK; }
int nvmlDeviceGetMigMode(void *h, uint *now, uint *next) {
    WHOLE(h);
    *now = *next = instances(index_of(h)) > 0;
    return OK;
}
int nvmlDeviceIsMigDeviceHandle(void *h, uint *out) { ENTER(h); *out = instance_of(h) > 0; return OK; }
int nvmlDeviceGetMaxMigDeviceCount(void *h, uint *out) { WHOLE(h); *out = 7; return OK; }
int nvmlDeviceGetMigDeviceHandleByIndex(void *h, uint index, void **out) {
    WHOLE(h);
    if (index >= (uint)instances(index_of(h))) return NOT_FOUND;
    *out = (void *)((size_t)h | (size_t)(index + 1) << 16);
    return OK;
}
int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(void *h, void **out) {
    *out = (void *)((size_t)h & 0xffff);
    return OK;
}
int nvmlDeviceGetGpuInstanceId(void *h, uint *out) { ENTER(h); *out = 6 + (uint)instance_of(h); return OK; }
int nvmlDeviceGetComputeInstanceId(void *h, uint *out) { ENTER(h); *out = 0; return OK; }
int nvmlDeviceGetCudaComputeCapability(void *h, int *major, int *minor) { ENTER(h); *major = 9, *minor = 0; return OK; }
int nvmlDeviceGetTotalEccErrors(void *h, uint type, uint counter, u64 *out) {
    (void)type, (void)counter;
    ENTER(h);
    *out = 0;
    return OK;
}
/* It measures for 20 ms. Sent, received. */
int nvmlDeviceGetPcieThroughput(void *h, uint kind, uint *out) {
    struct timespec pause = {0, 20000000};
    WHOLE(h);
    nanosleep(&pause, NULL);
    *out = kind == 0 ? 3000 : 7000;
    return OK;
}

/* NVLinks of a device in the order of the lines, those to switches first: who is at the other end, -1 a switch, -2 no such link. */
static int far_end(int device, uint link) {
    int end = -2;
    pthread_mutex_lock(&lock);
    read_rules();
    uint next = (uint)switch_links;
    if (link < next) end = -1;
    for (int i = 0; i < rule_count && end == -2; i++) {
        rule *r = &rules[i];
        if (r->verb != 'l' || (r->device != device && (int)r->a != device)) continue;
        next += (uint)r->b;
        if (link < next) end = r->device == device ? (int)r->a : r->device;
    }
    pthread_mutex_unlock(&lock);
    return end;
}
int nvmlDeviceGetNvLinkState(void *h, uint link, uint *out) {
    WHOLE(h);
    if (far_end(index_of(h), link) == -2) return INVALID_ARGUMENT;
    *out = 1;
    return OK;
}
int nvmlDeviceGetNvLinkRemoteDeviceType(void *h, uint link, uint *out) {
    WHOLE(h);
    *out = far_end(index_of(h), link) == -1 ? 2 : 0;
    return OK;
}
int nvmlDeviceGetNvLinkRemotePciInfo_v2(void *h, uint link, pci_info *out) {
    WHOLE(h);
    return nvmlDeviceGetPciInfo_v3((void *)(size_t)(far_end(index_of(h), link) + 1), out);
}
/* Pairs on a switch, four on a socket. */
int nvmlDeviceGetTopologyCommonAncestor(void *one, void *other, uint *out) {
    WHOLE(one);
    int a = index_of(one), b = index_of(other);
    *out = a / 2 == b / 2 ? 10 : a / 4 == b / 4 ? 40 : 50;
    return OK;
}
int nvmlDeviceGetCpuAffinity(void *h, uint words, unsigned long *out) {
    WHOLE(h);
    memset(out, 0, words * sizeof *out);
    out[0] = index_of(h) / 4 ? 0xf0 : 0x0f;
    return OK;
}
int nvmlDeviceGetMemoryAffinity(void *h, uint words, unsigned long *out, uint scope) {
    (void)scope;
    WHOLE(h);
    memset(out, 0, words * sizeof *out);
    out[0] = 1ul << index_of(h) / 4;
    return OK;
}

static int field_value(int device, field *f) {
    char name[32];
    snprintf(name, sizeof name, "field%u", f->id);
    int ret = enter(device, name);
    if (ret != OK) return ret;
    f->type = 3;
    u64 given;
    int links = 0;
    for (uint link = 0; link < LINKS; link++) links += far_end(device, link) != -2;
    switch (f->id) {
        case 82: f->type = 1, given = 55; break;
        case 94: f->type = 1, given = 3; break;
        case 3: case 4: case 5: case 6: given = 0; break;
        case 29: case 142: given = 1; break;
        case 30: case 143: given = 2; break;
        case 38: case 45: case 52: case 59:
            if (!links) return NOT_SUPPORTED;
            given = f->id == 52;
            break;
        case 138: case 139:
            if (!links) return NOT_SUPPORTED;
            if (f->scope != ~0u && far_end(device, f->scope) == -2) return INVALID_ARGUMENT;
            /* Beyond what 32 bits, or a float, could tell. */
            given = (1ull << 40) + (f->id == 139) + (f->scope == ~0u ? 1000 : f->scope * 2);
            break;
        default: return INVALID_ARGUMENT;
    }
    given = value_of(device, name, given);
    f->value.u = f->type == 1 ? (u64)(uint)given : given;
    return OK;
}
int nvmlDeviceGetFieldValues(void *h, int count, field *fields) {
    WHOLE(h);
    for (int i = 0; i < count; i++) fields[i].ret = field_value(index_of(h), &fields[i]);
    return OK;
}

/* A sample is a double: its number. Metrics are per cent, or MiB/s, of their own id. */
int nvmlGpmQueryDeviceSupport(void *h, uint *out) { ENTER(h); out[1] = 1; return OK; }
int nvmlGpmSampleAlloc(double **out) { return (*out = calloc(1, sizeof **out)) == NULL ? 20 : OK; }
int nvmlGpmSampleFree(double *sample) { free(sample); return OK; }
static double samples_taken;
int nvmlGpmSampleGet(void *h, double *sample) { WHOLE(h); *sample = ++samples_taken; return OK; }
int nvmlGpmMigSampleGet(void *h, uint instance, double *sample) {
    WHOLE(h);
    if (instance < 7) return INVALID_ARGUMENT;
    *sample = ++samples_taken;
    return OK;
}
int nvmlGpmMetricsGet(gpm_request *request) {
    if (request->version != 1 || request->newer[0] <= request->older[0]) return INVALID_ARGUMENT;
    for (uint i = 0; i < request->count; i++) {
        gpm_metric *m = &request->metrics[i];
        char name[32];
        snprintf(name, sizeof name, "gpm%u", m->id);
        m->ret = enter(-1, name);
        m->value = (double)value_of(-1, name, m->id);
    }
    return OK;
}

int nvmlEventSetCreate(void **out) { *out = (void *)1; return OK; }
int nvmlEventSetFree(void *set) { (void)set; return OK; }
int nvmlDeviceGetSupportedEventTypes(void *h, u64 *out) { WHOLE(h); *out = 8; return OK; }
int nvmlDeviceRegisterEvents(void *h, u64 types, void *set) { (void)types, (void)set; WHOLE(h); return OK; }
int nvmlEventSetWait_v2(void *set, event *out, uint milliseconds) {
    (void)set;
    struct timespec pause = {0, 20000000};
    for (uint waited = 0; waited < milliseconds; waited += 20) {
        pthread_mutex_lock(&lock);
        read_rules();
        int number = 0;
        for (int i = 0; i < rule_count; i++) {
            if (rules[i].verb != 'x' || number++ != xids_told) continue;
            xids_told++;
            *out = (event){(void *)(size_t)(rules[i].device + 1), 8, rules[i].a, rules[i].b ? (uint)rules[i].b : ~0u, ~0u};
            pthread_mutex_unlock(&lock);
            return OK;
        }
        pthread_mutex_unlock(&lock);
        nanosleep(&pause, NULL);
    }
    return TIMEOUT;
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
    (void)since;
    WHOLE(h);
    uint room = *count, found = 0;
    pthread_mutex_lock(&lock);
    read_rules();
    for (int i = 0; i < rule_count; i++)
        if (rules[i].verb == 's' && rules[i].device == index_of(h)) {
            if (found < room && out != NULL) out[found] = (process_sample){(uint)rules[i].a, 1, (uint)rules[i].b, 0, 0, 0};
            found++;
        }
    pthread_mutex_unlock(&lock);
    *count = found;
    return found == 0 ? NOT_FOUND : found > room ? INSUFFICIENT_SIZE : OK;
}
