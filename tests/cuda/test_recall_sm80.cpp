#include "check.hpp"
#include "emulator_sm80.hpp"
#include "recall_oracle.hpp"
#include "recollect/cuda/recall.hpp"
int main(){
  using namespace recollect;
  std::mt19937_64 random(90);
  for (auto type : {dtype::float32, dtype::float16, dtype::bfloat16})
  for (int d : {64, 128}) {
  test::Attention a;
  a.query = test::random({40, d}, random, type, 1, 3);
  a.key = test::random({200, d}, random, type, 1, 5);
  a.value = test::random({200, d}, random, type, 1, 5);
  a.scale_number = 1/std::sqrt(1.0*d);
  for (bool amp : {true,false}) {
  test::Tensor out(a.shape({a.n(), a.e()}), a.query.type, test::nan, 3), lse(a.shape({a.n()}));
  int launches;
  auto go=[&](auto device){
  cuda::attend(device, {a.query.in(), a.key.in(), a.value.in(), a.scale.in(), a.mask.in(), {}, {}}, a.scale_number, {}, {out.out(), lse.out(), {}});
  launches=device.launches;};
  if (amp) go(emulator::Ampere(1)); else go(emulator::Device(1));
  auto ans = test::attend(a);
  std::printf("%s %d amp %d launches %d out %g lse %g\n", std::string(name(type)).c_str(), d, amp, launches, test::difference(out, ans.out), test::difference(lse, ans.lse));
  }}
}
