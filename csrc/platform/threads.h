/* threads.h: a pool of persistent threads, and a barrier that works inside a parallel region.

   A pool of n threads is n - 1 sleeping workers and the caller of pool_run(), which becomes thread 0.
   A whole forward pass can be one region, with a barrier wherever an op reads what another thread wrote:

       static void block_forward(void *arg, int32_t thread, int32_t n_threads) {
           ...                                            // each thread: its rows
           pool_barrier(pool);                            // now all rows are written     
           ...
       }
       pool_run(pool, block_forward, &block);             // returns when every thread has returned

   Work is split by thread index alone (pool_split), never by order of arrival, so timing cannot change a result.

   What it does not do: no nested regions, no task queue, no work stealing. One caller at a time uses a pool.  */

#ifndef SAMPAN_THREADS_H
#define SAMPAN_THREADS_H

#include <stdint.h>

typedef struct thread_pool thread_pool;
typedef void (*pool_function)(void *arg, int32_t thread, int32_t n_threads);

enum { POOL_OK = 0, POOL_NO_MEMORY = 1, POOL_NO_THREAD = 2, POOL_BAD_COUNT = 3 };

/* Starts n_threads - 1 workers (1 <= n_threads <= 1024). On failure *pool is NULL and nothing is left running. */
int32_t pool_create(thread_pool **pool, int32_t n_threads);

/* Ends the workers. NULL is allowed. Not from inside a region. */
void pool_destroy(thread_pool *pool);

/* How many threads a region of this pool has; 1 for NULL: every function here takes NULL as a pool of one. */
int32_t pool_count_threads(const thread_pool *pool);

/* Calls function(arg, thread, n_threads) once on each thread; what they wrote is visible to the caller afterwards. */
void pool_run(thread_pool *pool, pool_function function, void *arg);

/* Inside a region only, and by every thread: returns when all have arrived; earlier writes of each are visible to all.
 */
void pool_barrier(thread_pool *pool);

/* This thread's share [begin, end) of `count` items: whole groups of `group` items (the last may be short), as even as
   groups allow. pool_split(10, 4, 1, 2, &b, &e) gives b = 8, e = 10; thread 0 had 0..8. */
static inline void pool_split(int64_t count, int64_t group, int32_t thread, int32_t n_threads, int64_t *begin,
                              int64_t *end) {
    int64_t groups = (count + group - 1) / group;
    int64_t each = groups / n_threads, extra = groups % n_threads; /* the first `extra` threads take one more */
    int64_t first = thread * each + (thread < extra ? thread : extra);
    int64_t last = first + each + (thread < extra);
    *begin = first * group < count ? first * group : count;
    *end = last * group < count ? last * group : count;
}

#endif
