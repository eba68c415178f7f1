// The smallest program of a C++ user: the whole library in one include.
#include <cstdio>

#include <recollect/recollect.hpp>

int main() {
  std::printf("recollect %s\n", recollect::version);
  return 0;
}
