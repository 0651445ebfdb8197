// The one variable that emulated kernels share: the lane that runs on this thread.
#include "host/emulated.h"

extern "C" {
thread_local CyaneaLane* cyanea_lane = nullptr;

// Where the scheduler puts the lane that it is about to resume on the calling thread.
CyaneaLane** cyanea_lane_slot() { return &cyanea_lane; }
}
