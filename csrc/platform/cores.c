/* cores.c: counts the cores and threads that this process may use; cpu.h says what each count is for. sampan/machine.py
   counts by the same rules. */

#define _GNU_SOURCE /* sched_getaffinity */

#include "cpu.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#include <unistd.h>
#else
#include <sched.h>
#include <unistd.h>
#endif

#if defined(_WIN32)

int32_t cpu_count_logical(void) {
    DWORD_PTR process = 0, system = 0;
    int32_t count = 0;
    if (GetProcessAffinityMask(GetCurrentProcess(), &process, &system))
        for (; process; process &= process - 1) count++;
    return count > 0 ? count : 1;
}

static int32_t count_physical(void) {
    DWORD bytes = 0;
    int32_t cores = 0;
    GetLogicalProcessorInformation(NULL, &bytes);
    SYSTEM_LOGICAL_PROCESSOR_INFORMATION *info = malloc(bytes ? bytes : 1);
    if (info && GetLogicalProcessorInformation(info, &bytes))
        for (DWORD i = 0; i < bytes / sizeof *info; i++) cores += info[i].Relationship == RelationProcessorCore;
    free(info);
    return cores;
}

#elif defined(__linux__)

enum { NO_QUOTA = 1 << 20 };

/* Whole cores of a quota in microseconds per period, at least 1. */
static int32_t quota_cores(long long quota, long long period) {
    if (quota <= 0 || period <= 0 || quota / period >= NO_QUOTA) return NO_QUOTA;
    return quota < period ? 1 : (int32_t)(quota / period);
}

/* The first `count` numbers of a file; 0 unless it has them ("max" is not a number). */
static int read_numbers(const char *path, int count, long long *numbers) {
    FILE *file = fopen(path, "r");
    if (!file) return 0;
    int found = 0;
    while (found < count && fscanf(file, "%lld", &numbers[found]) == 1) found++;
    fclose(file);
    return found == count;
}

/* The quota of one control group: version 2 has "150000 100000" in one file, version 1 has two files. */
static int32_t group_cores(const char *folder, int version) {
    char path[8224];
    long long numbers[2];
    snprintf(path, sizeof path, version == 2 ? "%s/cpu.max" : "%s/cpu.cfs_quota_us", folder);
    if (!read_numbers(path, version == 2 ? 2 : 1, numbers)) return NO_QUOTA;
    snprintf(path, sizeof path, "%s/cpu.cfs_period_us", folder);
    if (version == 1 && !read_numbers(path, 1, numbers + 1)) return NO_QUOTA;
    return quota_cores(numbers[0], numbers[1]);
}

int32_t cpu_read_quota(const char *groups, const char *root) {
    char line[4096], folder[8192], top[4096];
    int32_t least = NO_QUOTA;
    FILE *file = fopen(groups, "r");
    if (!file) return least;
    while (fgets(line, sizeof line, file)) { /* "4:cpu,cpuacct:/docker/1f2e", or "0::/" in version 2 */
        line[strcspn(line, "\n")] = 0;
        char *controllers = strchr(line, ':'), *path = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!path) continue;
        *controllers = *path++ = ',';
        const int version = controllers[1] == ',' ? 2 : 1;
        const char *cpu = strstr(controllers, ",cpu,");
        if (version == 1 && (!cpu || cpu + 5 > path)) continue;
        int length = snprintf(top, sizeof top, "%s%s", root, version == 1 ? "/cpu" : "");
        snprintf(folder, sizeof folder, "%s%s", top, path);
        for (char *slash = folder + length; slash >= folder + length; *slash = 0) {
            int32_t cores = group_cores(folder, version);
            if (cores < least) least = cores;
            slash = strrchr(folder, '/');
        }
    }
    fclose(file);
    return least;
}

static int32_t count_allowed(void) {
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) return CPU_COUNT(&allowed);
    return (int32_t)sysconf(_SC_NPROCESSORS_ONLN);
}

int32_t cpu_count_logical(void) {
    int32_t count = count_allowed(), quota = cpu_read_quota("/proc/self/cgroup", "/sys/fs/cgroup");
    if (quota < count) count = quota;
    return count > 0 ? count : 1;
}

/* Marks the CPUs of a list such as "0,64" or "0-1". */
static void mark_siblings(const char *list, cpu_set_t *seen) {
    for (const char *at = list;;) {
        char *end;
        long first = strtol(at, &end, 10), last = first;
        if (end == at) return;
        if (*end == '-') last = strtol(end + 1, &end, 10);
        for (long sibling = first; sibling <= last && sibling < CPU_SETSIZE; sibling++)
            if (sibling >= 0) CPU_SET((int)sibling, seen);
        if (*end != ',') return;
        at = end + 1;
    }
}

/* Allowed CPUs that are the first of their core's siblings among the allowed ones. */
static int32_t count_physical(void) {
    cpu_set_t allowed, seen;
    int32_t cores = 0;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return 0;
    CPU_ZERO(&seen);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &allowed) || CPU_ISSET(cpu, &seen)) continue;
        cores++;
        char path[96], list[256];
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
        FILE *file = fopen(path, "r");
        if (!file) continue;
        if (fgets(list, sizeof list, file)) mark_siblings(list, &seen);
        fclose(file);
    }
    return cores;
}

#else

int32_t cpu_count_logical(void) {
    long count = sysconf(_SC_NPROCESSORS_ONLN);
    return count > 0 ? (int32_t)count : 1;
}

/* On Apple silicon the performance cores alone: work is split evenly, and would wait for the slow ones. */
static int32_t count_physical(void) {
    int32_t cores = 0;
#if defined(__APPLE__)
    size_t bytes = sizeof cores;
    if (sysctlbyname("hw.perflevel0.physicalcpu", &cores, &bytes, NULL, 0) == 0 && cores > 0) return cores;
    bytes = sizeof cores;
    if (sysctlbyname("hw.physicalcpu", &cores, &bytes, NULL, 0) != 0) return 0;
#endif
    return cores;
}

#endif

int32_t cpu_count_cores(void) {
    int32_t cores = count_physical(), logical = cpu_count_logical();
    return cores > 0 && cores < logical ? cores : logical;
}

int32_t cpu_count_threads(void) {
    enum { MOST = 1024 };
    const char *asked = getenv("OMP_NUM_THREADS"); /* "8", or a list with a number for each level */
    char *end;
    long threads = asked ? strtol(asked, &end, 10) : 0;
    if (threads < 1 || (*end && *end != ',')) return cpu_count_cores();
    return threads < MOST ? (int32_t)threads : MOST;
}
