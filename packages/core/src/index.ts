/**
 * Tensors, strides, autograd and operator definitions, with a plain-JavaScript reference backend.
 *
 * @module core
 */
import './methods.ts'

export { detectAnomaly, detectAnomalyAsync } from './autograd/anomaly.ts'
export { type BackwardOptions, backward, type GradOptions, grad } from './autograd/backward.ts'
export { type CheckpointOptions, checkpoint } from './autograd/checkpoint.ts'
export { customFunction, type FunctionContext } from './autograd/custom.ts'
export { hessian, type JacobianOptions, jacobian, type VmapOptions, vmap } from './autograd/functional.ts'
export { type GradcheckOptions, gradcheck } from './autograd/gradcheck.ts'
export { enableGrad, GradNode, gradEnabled, noGrad } from './autograd/tape.ts'
export { describe as describeValue, expectOptions, type Names } from './checks.ts'
export { type Compiled, type CompileOptions, compile } from './compile/compile.ts'
export type { PlanInfo } from './compile/plan.ts'
export { type AutocastDType, autocast } from './dispatch/autocast.ts'
export type {
  Backend,
  BackendBuffer,
  DeviceSpan,
  DeviceTimer,
  Exchange,
  OperandLimit,
  Prepared,
  View,
} from './dispatch/backend.ts'
export type { Call } from './dispatch/call.ts'
export {
  defaultBackend,
  getBackend,
  openDevice,
  registerAsyncBackend,
  registerBackend,
  setDefaultBackend,
  setDevice,
  withBackend,
} from './dispatch/device.ts'
export * from './dispatch/kernels.ts'
export { apply, type Op, type Precision, type TensorSpec } from './dispatch/op.ts'
export {
  type Path,
  type Profile,
  type ProfileRow,
  profile,
  profileAsync,
  reportPath,
} from './dispatch/profile.ts'
export * from './errors.ts'
export type { Binary, Expr, Unary } from './expr/expr.ts'
export * as expr from './expr/expr.ts'
export { type NamedProgram, namedProgram } from './expr/named.ts'
export {
  type Exprs,
  type Gradient,
  gradient,
  type Program,
  program,
  specialize,
  type Typed,
  type TypedProgram,
  typedPostOrder,
} from './expr/program.ts'
export { type OffloadOptions, offload, offloaded } from './offload/offload.ts'
export { type Activation, expectActivation } from './ops/activations.ts'
export { at, type Index, indexPut, type SetOptions, set } from './ops/at.ts'
export * from './ops/attention/attention.ts'
export {
  type BlockMask,
  type BlockMaskOptions,
  type BlockTensor,
  createBlockMask,
  type TopkBlocksOptions,
  topkBlocks,
} from './ops/attention/block-mask.ts'
export * from './ops/attention/heads.ts'
export * from './ops/attention/rotary.ts'
export { type BatchNormOptions, batchNorm } from './ops/convolution/batch-norm.ts'
export { type ConvAttrs, type ConvOptions, conv1d, conv2d } from './ops/convolution/conv.ts'
export {
  type ConvTransposeOptions,
  convTranspose1d,
  convTranspose2d,
} from './ops/convolution/conv-transpose.ts'
export { col2im, im2col, type WindowOptions } from './ops/convolution/im2col.ts'
export * from './ops/convolution/pool.ts'
export type { WindowPadding, WindowSizes } from './ops/convolution/spans.ts'
export {
  arange,
  data,
  dataSync,
  equal,
  eye,
  full,
  fullLike,
  item,
  itemSync,
  linspace,
  type MoveTarget,
  ones,
  onesLike,
  type TensorJSON,
  type TensorOptions,
  tensor,
  to,
  toArray,
  zeros,
  zerosLike,
} from './ops/create.ts'
export { einsum } from './ops/einsum.ts'
export * from './ops/extremes.ts'
export * from './ops/found.ts'
export * from './ops/functions.ts'
export * from './ops/grids.ts'
export * from './ops/indexing.ts'
export * from './ops/inplace.ts'
export * from './ops/likes.ts'
export * from './ops/linalg.ts'
export { type LinearAttrs, type LinearEpilogue, linear, type NormLinearAttrs } from './ops/linear.ts'
export type { LinearForm, LinearFormOptions, StateOptions } from './ops/linear-attention/chunks.ts'
export { type DeltaRuleOptions, deltaRule } from './ops/linear-attention/delta-rule.ts'
export {
  type GatedLinearAttentionAttrs,
  type GatedLinearAttentionOptions,
  gatedLinearAttention,
  type RetentionOptions,
  retention,
  retentionDecays,
} from './ops/linear-attention/gated.ts'
export * from './ops/linear-attention/linear-attention.ts'
export { type LinearCrossEntropyOptions, linearCrossEntropy } from './ops/linear-cross-entropy.ts'
export * from './ops/loss.ts'
export * from './ops/matrices.ts'
export * from './ops/more-activations.ts'
export * from './ops/more-inplace.ts'
export * from './ops/more-losses.ts'
export { type MultinomialOptions, multinomial } from './ops/multinomial.ts'
export * from './ops/norm.ts'
export * from './ops/pointwise.ts'
export { dequantize, quantizedLinear } from './ops/quantized.ts'
export {
  bernoulli,
  dropout,
  dropoutFactors,
  dropoutParams,
  type RandnOptions,
  type RandOptions,
  rand,
  randint,
  randn,
  randperm,
} from './ops/random.ts'
export * from './ops/reduction.ts'
export * from './ops/scatter.ts'
export * from './ops/shape.ts'
export * from './ops/sizes.ts'
export * from './ops/statistics.ts'
export { text } from './ops/text.ts'
export * from './ops/total-norm.ts'
export * from './ops/trigonometry.ts'
export {
  elementwise as applyProgram,
  elementwiseAll as applyProgramAll,
  elementwiseInto as applyProgramInto,
  generate as generateProgram,
} from './primitives/elementwise.ts'
export {
  elementwiseIntoEach as applyProgramIntoEach,
  type InPlaceCall,
} from './primitives/foreach.ts'
export {
  getRngState,
  hostRandint,
  hostRandom,
  manualSeed,
  RandomGenerator,
  type RngState,
  setRngState,
} from './random.ts'
export { reference } from './reference/backend.ts'
export { referenceKernels } from './reference/kernels.ts'
export {
  allGather,
  allReduce,
  type HostTensor,
  type Link,
  Mailbox,
  type Message,
  RankError,
  runRanks,
} from './ring/link.ts'
export {
  type RingAttention,
  type RingAttentionOptions,
  type RingOrder,
  ringAttention,
  ringPieces,
  ringShard,
  ringUnshard,
} from './ring/ring-attention.ts'
export { type RingLinearAttentionOptions, ringLinearAttention } from './ring/ring-linear-attention.ts'
export { checkLeaks, type Leak, LeakError, type LeakOptions } from './tensor/check-leaks.ts'
export { type DType, info as dtypeInfo, isFloat, promote, type TypedArray, toFloat } from './tensor/dtype.ts'
export { flatOf, type Nested } from './tensor/from-arrays.ts'
export { largestHolders } from './tensor/holders.ts'
export type { Layout } from './tensor/layout.ts'
export * as layout from './tensor/layout.ts'
export { type MemoryInfo, memory, resetPeakMemory, scope } from './tensor/memory.ts'
export { type ArrayOperand, asTensor, expectTensor } from './tensor/operands.ts'
export { Printable, type PrintOptions, setPrintOptions, shownAs } from './tensor/printing.ts'
export { reclaim } from './tensor/safety-net.ts'
export { type Hook, Tensor } from './tensor/tensor.ts'
