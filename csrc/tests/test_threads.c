/* test_threads.c: the pool calls everyone once, a barrier lets no one through early, more threads than cores only take
   longer; and cores are counted within a container's quota. */

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "platform/cpu.h"
#include "platform/file.h"
#include "platform/threads.h"

enum { ROUNDS = 2000, REGIONS = 300, MAX_THREADS = 9 };

typedef struct meeting {
    thread_pool *pool;
    int32_t rounds[MAX_THREADS]; /* how far each thread is; plain memory that the barrier must make visible */
    atomic_int early;
    atomic_int calls[MAX_THREADS];
} meeting;

static void meet(void *arg, int32_t thread, int32_t n_threads) {
    meeting *m = arg;
    atomic_fetch_add(&m->calls[thread], 1);
    for (int32_t round = 0; round < ROUNDS / REGIONS + 1; round++) {
        m->rounds[thread]++;
        pool_barrier(m->pool);
        for (int32_t other = 0; other < n_threads; other++)
            if (m->rounds[other] != m->rounds[thread]) atomic_fetch_add(&m->early, 1);
        pool_barrier(m->pool);
    }
}

static int test_pool(int32_t n_threads) {
    meeting m = {.pool = NULL};
    int failures = 0;
    if (pool_create(&m.pool, n_threads) != POOL_OK) {
        printf("FAIL no pool of %d threads\n", n_threads);
        return 1;
    }
    for (int region = 0; region < REGIONS; region++) pool_run(m.pool, meet, &m);
    for (int32_t thread = 0; thread < n_threads; thread++) failures += atomic_load(&m.calls[thread]) != REGIONS;
    failures += atomic_load(&m.early) != 0 || pool_count_threads(m.pool) != n_threads;
    if (failures)
        printf("FAIL %d threads: %d came through a barrier early, or a thread was not called once a region\n",
               n_threads, atomic_load(&m.early));
    pool_destroy(m.pool);
    return failures;
}

/* Shares cover everything once, in order, in whole groups, and differ by one group at most. */
static int test_split(void) {
    int failures = 0;
    for (int64_t count = 0; count < 70; count++) {
        for (int64_t group = 1; group < 9; group++) {
            for (int32_t n_threads = 1; n_threads < 8; n_threads++) {
                int64_t at = 0, least = INT64_MAX, most = 0;
                for (int32_t thread = 0; thread < n_threads; thread++) {
                    int64_t begin, end;
                    pool_split(count, group, thread, n_threads, &begin, &end);
                    const int64_t groups = (end - begin + group - 1) / group;
                    if (begin != at || end < begin || (end != count && end % group)) failures++;
                    if (groups < least) least = groups;
                    if (groups > most) most = groups;
                    at = end;
                }
                if (at != count || most - least > 1) failures++;
            }
        }
    }
    if (failures) printf("FAIL pool_split\n");
    return failures;
}

#ifdef __linux__
/* Writes a file into a folder below `root`, and makes that folder. */
static void put(const char *root, const char *folder, const char *name, const char *text) {
    char path[1200];
    snprintf(path, sizeof path, "%s%s", root, folder);
    for (char *slash = path + strlen(root); (slash = strchr(slash + 1, '/')); *slash = '/') {
        *slash = 0;
        file_make_folder(path);
    }
    file_make_folder(path);
    snprintf(path, sizeof path, "%s%s/%s", root, folder, name);
    FILE *file = fopen(path, "w");
    if (!file) exit(3);
    fputs(text, file);
    fclose(file);
}

/* Version 2: the quota of a group inside of another; "max" is none. Version 1: two files, by controller. */
static int test_quota(void) {
    char root[1024], groups[1100];
    snprintf(root, sizeof root, "%s/cgroup", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
    file_make_folder(root);
    snprintf(groups, sizeof groups, "%s/groups", root);
    int failures = 0;
    put(root, "", "groups", "0::/outer/inner\n");
    put(root, "/outer", "cpu.max", "350000 100000\n");
    put(root, "/outer/inner", "cpu.max", "max 100000\n");
    failures += cpu_read_quota(groups, root) != 3;
    put(root, "/outer/inner", "cpu.max", "50000 100000\n");
    failures += cpu_read_quota(groups, root) != 1;
    put(root, "/cpu/job", "cpu.cfs_quota_us", "200000\n");
    put(root, "/cpu/job", "cpu.cfs_period_us", "100000\n");
    put(root, "", "groups", "5:memory:/other\n4:cpu,cpuacct:/job\n");
    failures += cpu_read_quota(groups, root) != 2;
    put(root, "/cpu/job", "cpu.cfs_quota_us", "-1\n");
    failures += cpu_read_quota(groups, root) < 1024 || cpu_read_quota("/no/such/file", root) < 1024;
    if (failures) printf("FAIL %d quotas\n", failures);
    return failures;
}
#else
static int test_quota(void) { return 0; }
#endif

#ifndef _WIN32
/* OMP_NUM_THREADS, where it is a number or a list of them. */
static int test_environment(void) {
    const struct {
        const char *value;
        int32_t threads;
    } cases[] = {{"3", 3}, {"7,2", 7}, {"99999", 1024}, {"", 0}, {"0", 0}, {"-2", 0}, {"4x", 0}};
    int failures = 0;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        setenv("OMP_NUM_THREADS", cases[i].value, 1);
        failures += cpu_count_threads() != (cases[i].threads ? cases[i].threads : cpu_count_cores());
    }
    unsetenv("OMP_NUM_THREADS");
    failures += cpu_count_threads() != cpu_count_cores();
    if (failures) printf("FAIL %d values of OMP_NUM_THREADS\n", failures);
    return failures;
}
#else
static int test_environment(void) { return 0; }
#endif

int main(void) {
    int failures = test_split() + test_quota() + test_environment();
    for (int32_t n_threads = 1; n_threads <= MAX_THREADS; n_threads++) failures += test_pool(n_threads);
    thread_pool *pool;
    failures += pool_create(&pool, 0) != POOL_BAD_COUNT || pool != NULL;
    failures += pool_count_threads(NULL) != 1 || cpu_count_cores() < 1;
    pool_barrier(NULL);
    pool_destroy(NULL);
    printf("threads    1 to %d threads on %d cores, %d failures\n", MAX_THREADS, cpu_count_cores(), failures);
    return failures > 0;
}
