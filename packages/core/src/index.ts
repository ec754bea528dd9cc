/**
 * Tensors, strides, autograd and operator definitions, with a plain-JavaScript reference backend.
 *
 * @module core
 */
import './methods.ts'

export type {
  Backend,
  BackendBuffer,
  DeviceSpan,
  DeviceTimer,
  OperandLimit,
  View,
} from './backend.ts'
export { checkLeaks, type Leak, LeakError, type LeakOptions } from './check-leaks.ts'
export { checkpoint } from './checkpoint.ts'
export { describe as describeValue, expectOptions, type Names } from './checks.ts'
export { customFunction, type FunctionContext } from './custom.ts'
export {
  defaultBackend,
  getBackend,
  openDevice,
  registerAsyncBackend,
  registerBackend,
  setDefaultBackend,
  setDevice,
  withBackend,
} from './device.ts'
export type { Call } from './dispatch/call.ts'
export * from './dispatch/kernels.ts'
export { type DType, info as dtypeInfo, isFloat, promote, type TypedArray, toFloat } from './dtype.ts'
export { type BackwardOptions, backward, type GradOptions, grad } from './engine.ts'
export * from './errors.ts'
export type { Binary, Expr, Unary } from './expr.ts'
export * as expr from './expr.ts'
export { flatOf, type Nested } from './from-arrays.ts'
export { type GradcheckOptions, gradcheck } from './gradcheck.ts'
export { largestHolders } from './holders.ts'
export type { Layout } from './layout.ts'
export * as layout from './layout.ts'
export { type MemoryInfo, memory, resetPeakMemory, scope } from './memory.ts'
export { apply, type Op, type TensorSpec } from './op.ts'
export { type ArrayOperand, asTensor, expectTensor } from './operands.ts'
export { type Activation, expectActivation } from './ops/activations.ts'
export * from './ops/attention.ts'
export {
  type BlockMask,
  type BlockMaskOptions,
  type BlockTensor,
  createBlockMask,
  type TopkBlocksOptions,
  topkBlocks,
} from './ops/block-mask.ts'
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
export { type DeltaRuleOptions, deltaRule } from './ops/delta-rule.ts'
export { einsum } from './ops/einsum.ts'
export {
  type GatedLinearAttentionAttrs,
  type GatedLinearAttentionOptions,
  gatedLinearAttention,
  type RetentionOptions,
  retention,
  retentionDecays,
} from './ops/gated-linear-attention.ts'
export * from './ops/heads.ts'
export * from './ops/indexing.ts'
export * from './ops/inplace.ts'
export * from './ops/linalg.ts'
export { type LinearAttrs, type LinearEpilogue, linear } from './ops/linear.ts'
export * from './ops/linear-attention.ts'
export type { LinearForm, LinearFormOptions, StateOptions } from './ops/linear-attention-chunks.ts'
export { type LinearCrossEntropyOptions, linearCrossEntropy } from './ops/linear-cross-entropy.ts'
export * from './ops/loss.ts'
export * from './ops/norm.ts'
export * from './ops/pointwise.ts'
export {
  bernoulli,
  dropout,
  dropoutFactors,
  dropoutParams,
  multinomial,
  type RandnOptions,
  type RandOptions,
  rand,
  randint,
  randn,
  randperm,
} from './ops/random.ts'
export * from './ops/reduction.ts'
export * from './ops/rotary.ts'
export * from './ops/shape.ts'
export { text } from './ops/text.ts'
export * from './ops/total-norm.ts'
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
export { Printable, type PrintOptions, setPrintOptions, shownAs } from './printing.ts'
export { type Path, type Profile, type ProfileRow, profile, profileAsync, reportPath } from './profile.ts'
export {
  type Gradient,
  gradient,
  type Kernel,
  type Program,
  program,
  specialize,
  type Typed,
  typedPostOrder,
} from './program.ts'
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
export { reclaim } from './safety-net.ts'
export { enableGrad, GradNode, gradEnabled, noGrad } from './tape.ts'
export { type Hook, Tensor } from './tensor.ts'
