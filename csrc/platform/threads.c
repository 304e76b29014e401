/* threads.c: the pool of threads.h on pthreads or Win32.

   One mechanism does everything: a barrier of all threads. A worker waits at it for work, and the caller's arrival
   starts the region; a second one ends it. A hot barrier is two atomic operations and one cache line bouncing (0.1 to
   0.3 us). Whoever waits for long first offers its core to others between two looks, since the thread that it waits for
   may be the one that needs it (another program is busy, or there are more threads than cores), and then goes to sleep.
 */

#include "threads.h"

#include <stdatomic.h>
#include <stdlib.h>

#include "clock.h"
#include "cpu.h"

#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#include <process.h>
#else
#include <pthread.h>
#include <sched.h>
#endif

enum {
    SPIN_NANOSECONDS = 2000,    /* only looking: longer than the unevenness of a small op */
    YIELD_NANOSECONDS = 100000, /* until sleep: longer than a caller's work between two decoded tokens */
    SPIN_PAUSES = 64,           /* between two looks at the clock */
    CACHE_LINE = 128,           /* 64 on most; neighbours are fetched in pairs */
    MAX_THREADS = 1024,
};

/* ---- what differs between systems ---- */

#ifdef _WIN32
typedef HANDLE thread_handle;
typedef SRWLOCK lock_type;
typedef CONDITION_VARIABLE signal_type;
typedef unsigned thread_result;
#define THREAD_CALL __stdcall
static void lock_create(lock_type *lock, signal_type *signal) {
    InitializeSRWLock(lock);
    InitializeConditionVariable(signal);
}
static void lock_destroy(lock_type *lock, signal_type *signal) {
    (void)lock;
    (void)signal;
}
static void lock_take(lock_type *lock) { AcquireSRWLockExclusive(lock); }
static void lock_give(lock_type *lock) { ReleaseSRWLockExclusive(lock); }
static void signal_wait(signal_type *signal, lock_type *lock) { SleepConditionVariableSRW(signal, lock, INFINITE, 0); }
static void signal_wake_all(signal_type *signal) { WakeAllConditionVariable(signal); }
static int thread_start(thread_handle *handle, thread_result(THREAD_CALL *function)(void *), void *arg) {
    *handle = (HANDLE)_beginthreadex(NULL, 0, function, arg, 0, NULL);
    return *handle != NULL;
}
static void thread_join(thread_handle handle) {
    WaitForSingleObject(handle, INFINITE);
    CloseHandle(handle);
}
static void thread_yield(void) { SwitchToThread(); }
#else
typedef pthread_t thread_handle;
typedef pthread_mutex_t lock_type;
typedef pthread_cond_t signal_type;
typedef void *thread_result;
#define THREAD_CALL
static void lock_create(lock_type *lock, signal_type *signal) {
    pthread_mutex_init(lock, NULL);
    pthread_cond_init(signal, NULL);
}
static void lock_destroy(lock_type *lock, signal_type *signal) {
    pthread_mutex_destroy(lock);
    pthread_cond_destroy(signal);
}
static void lock_take(lock_type *lock) { pthread_mutex_lock(lock); }
static void lock_give(lock_type *lock) { pthread_mutex_unlock(lock); }
static void signal_wait(signal_type *signal, lock_type *lock) { pthread_cond_wait(signal, lock); }
static void signal_wake_all(signal_type *signal) { pthread_cond_broadcast(signal); }
static int thread_start(thread_handle *handle, thread_result (*function)(void *), void *arg) {
    return pthread_create(handle, NULL, function, arg) == 0;
}
static void thread_join(thread_handle handle) { pthread_join(handle, NULL); }
static void thread_yield(void) { sched_yield(); }
#endif

static inline void cpu_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb"); /* ARM's `yield` is a no-op on most cores; this one does wait */
#endif
}

/* ---- the pool ---- */

typedef struct worker {
    thread_pool *pool;
    int32_t thread;
    thread_handle handle;
} worker;

struct thread_pool {
    int32_t n_threads;
    int32_t may_spin;       /* 0: more threads than cores, a waiting one must offer its core at once */
    pool_function function; /* NULL: the workers end */
    void *arg;
    worker *workers; /* (n_threads - 1) */

    char pad0[CACHE_LINE];
    atomic_int arrived; /* at the current barrier */
    char pad1[CACHE_LINE];
    atomic_uint phase; /* barriers completed; what the others spin on */
    char pad2[CACHE_LINE];
    atomic_int sleepers;
    lock_type lock; /* for sleepers only */
    signal_type wake;
};

static int phase_is_over(thread_pool *pool, unsigned phase) {
    return atomic_load_explicit(&pool->phase, memory_order_acquire) != phase;
}

static void phase_wait(thread_pool *pool, unsigned phase) {
    int64_t start = 0, waited = pool->may_spin ? 0 : SPIN_NANOSECONDS;
    do {
        const int pauses = waited < SPIN_NANOSECONDS ? SPIN_PAUSES : 1;
        for (int i = 0; i < pauses; i++) {
            if (phase_is_over(pool, phase)) return;
            cpu_pause();
        }
        if (waited >= SPIN_NANOSECONDS) thread_yield();
        const int64_t now = clock_nanoseconds();
        if (start == 0) start = now - waited; /* the clock is not read if the first round is enough, as it mostly is */
        waited = now - start;
    } while (waited < YIELD_NANOSECONDS);
    /* A sleeper announces itself and then looks at the phase; the last to arrive moves the phase and then looks for
       sleepers. Both in sequentially consistent order, so one of the two sees the other. */
    lock_take(&pool->lock);
    atomic_fetch_add(&pool->sleepers, 1);
    while (atomic_load(&pool->phase) == phase) signal_wait(&pool->wake, &pool->lock);
    atomic_fetch_sub(&pool->sleepers, 1);
    lock_give(&pool->lock);
}

void pool_barrier(thread_pool *pool) {
    if (!pool || pool->n_threads == 1) return;
    unsigned phase = atomic_load_explicit(&pool->phase,
                                          memory_order_relaxed); /* cannot move before this thread arrives */
    if (atomic_fetch_add_explicit(&pool->arrived, 1, memory_order_acq_rel) + 1 < pool->n_threads) {
        phase_wait(pool, phase);
        return;
    }
    atomic_store_explicit(&pool->arrived, 0, memory_order_relaxed); /* published by the phase */
    atomic_store(&pool->phase, phase + 1);
    if (atomic_load(&pool->sleepers) > 0) {
        lock_take(&pool->lock);
        signal_wake_all(&pool->wake);
        lock_give(&pool->lock);
    }
}

static thread_result THREAD_CALL worker_main(void *arg) {
    worker *self = arg;
    thread_pool *pool = self->pool;
    for (;;) {
        pool_barrier(pool);
        if (!pool->function) return 0;
        pool->function(pool->arg, self->thread, pool->n_threads);
        pool_barrier(pool);
    }
}

void pool_run(thread_pool *pool, pool_function function, void *arg) {
    if (!pool || pool->n_threads == 1) {
        function(arg, 0, 1);
        return;
    }
    pool->function = function;
    pool->arg = arg;
    pool_barrier(pool);
    function(arg, 0, pool->n_threads);
    pool_barrier(pool);
}

int32_t pool_count_threads(const thread_pool *pool) { return pool ? pool->n_threads : 1; }

int32_t pool_create(thread_pool **result, int32_t n_threads) {
    *result = NULL;
    if (n_threads < 1 || n_threads > MAX_THREADS) return POOL_BAD_COUNT;
    thread_pool *pool = calloc(1, sizeof *pool);
    worker *workers = calloc((size_t)n_threads, sizeof *workers);
    if (!pool || !workers) {
        free(pool);
        free(workers);
        return POOL_NO_MEMORY;
    }
    pool->n_threads = n_threads;
    pool->may_spin = n_threads <= cpu_count_logical();
    pool->workers = workers;
    atomic_init(&pool->arrived, 0);
    atomic_init(&pool->phase, 0);
    atomic_init(&pool->sleepers, 0);
    lock_create(&pool->lock, &pool->wake);
    for (int32_t i = 0; i < n_threads - 1; i++) {
        workers[i].pool = pool;
        workers[i].thread = i + 1;
        if (thread_start(&workers[i].handle, worker_main, &workers[i])) continue;
        /* Those that run wait at a barrier of n_threads; arrive in the place of each that does not. */
        for (int32_t missing = i + 1; missing < n_threads; missing++) atomic_fetch_add(&pool->arrived, 1);
        pool->workers[i].pool = NULL;
        pool_destroy(pool);
        return POOL_NO_THREAD;
    }
    *result = pool;
    return POOL_OK;
}

void pool_destroy(thread_pool *pool) {
    if (!pool) return;
    pool->function = NULL;
    pool_barrier(pool);
    for (int32_t i = 0; i < pool->n_threads - 1 && pool->workers[i].pool; i++) thread_join(pool->workers[i].handle);
    lock_destroy(&pool->lock, &pool->wake);
    free(pool->workers);
    free(pool);
}
