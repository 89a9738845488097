#include "mma.h"
const Opcode wmma_ops[] = {{0}};
