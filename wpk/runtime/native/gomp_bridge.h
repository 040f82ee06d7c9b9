/* The OpenMP regions of one library, run on wpk's own thread pool.

   A library built on libgomp would bring a second set of threads; two sets that spin on the same cores cost more than
   either computes. The bridge redirects that library's imports of libgomp (its alone, in its global offset table) to
   functions that use the pool of the caller's wpk_rt between wpk_bridge_enter and wpk_bridge_leave, and libgomp as before
   at any other time. Where redirecting is not possible, libgomp's threads serve as before. */
#ifndef WPK_GOMP_BRIDGE_H
#define WPK_GOMP_BRIDGE_H
#include "wpk.h"

/* Redirects the imports of the library `handle` (of dlopen). Once for each library. */
void wpk_bridge_install(void *handle);

/* What omp_get_max_threads says to the library on this thread; 0 ends it. */
void wpk_bridge_threads(int threads);

/* From enter to leave, on this thread, parallel regions run on rt's pool. */
void wpk_bridge_enter(const wpk_rt *rt);
void wpk_bridge_leave(void);
#endif
