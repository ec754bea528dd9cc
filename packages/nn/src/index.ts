/**
 * Neural-network modules, optimisers and learning-rate schedules, on whatever backend the tensors live.
 *
 * @packageDocumentation
 */

export { type AttentionBlocks, fixedBlocks } from './attention/block-attention.ts'
export { AttentionCache, KVCache, type KVCacheOptions } from './attention/cache.ts'
export { type AttentionFactory, type AttentionKind, attentionKinds } from './attention/kinds.ts'
export {
  GatedDeltaNet,
  GatedLinearAttention,
  type GatedLinearAttentionLayerOptions,
  LinearAttention,
  type LinearAttentionOptions,
  Retention,
  type RetentionLayerOptions,
  StateAttention,
} from './attention/linear-attention.ts'
export {
  type AttentionCall,
  type AttentionForwardOptions,
  type AttentionModuleOptions,
  alibiSlopes,
  MultiHeadAttention,
  type MultiHeadAttentionOptions,
  SelfAttention,
} from './attention/multi-head.ts'
export {
  MultiheadAttention,
  type MultiheadAttentionForwardOptions,
  type MultiheadAttentionOptions,
} from './attention/multihead-attention.ts'
export type { RopeOptions, RopeScaling } from './attention/rope.ts'
export { type Memory, StateCache, type StateCacheOptions } from './attention/state-cache.ts'
export * as init from './init.ts'
export {
  CELU,
  ELU,
  GELU,
  GLU,
  Hardshrink,
  Hardsigmoid,
  Hardswish,
  Hardtanh,
  LeakyReLU,
  LogSigmoid,
  LogSoftmax,
  Mish,
  PReLU,
  type PReLUOptions,
  ReLU,
  ReLU6,
  SELU,
  Sigmoid,
  SiLU,
  Softmax,
  Softmin,
  Softplus,
  Softshrink,
  Softsign,
  Tanh,
  Tanhshrink,
  Threshold,
} from './layers/activation.ts'
export { BatchNorm1d, BatchNorm2d, type BatchNormLayerOptions } from './layers/batch-norm.ts'
export { type Layer, ModuleDict, ModuleList, Sequential } from './layers/containers.ts'
export { Conv1d, Conv2d, type ConvLayerOptions } from './layers/conv.ts'
export { ConvTranspose1d, ConvTranspose2d, type ConvTransposeLayerOptions } from './layers/conv-transpose.ts'
export { Dropout, Dropout1d, Dropout2d } from './layers/dropout.ts'
export { Embedding, type EmbeddingOptions } from './layers/embedding.ts'
export { Fold, Unfold } from './layers/fold.ts'
export { Linear, type LinearOptions } from './layers/linear.ts'
export {
  BCELoss,
  BCEWithLogitsLoss,
  CosineEmbeddingLoss,
  CosineSimilarity,
  CrossEntropyLoss,
  HingeEmbeddingLoss,
  HuberLoss,
  KLDivLoss,
  L1Loss,
  MarginRankingLoss,
  MSELoss,
  NLLLoss,
  PairwiseDistance,
  SmoothL1Loss,
  SoftMarginLoss,
  TripletMarginLoss,
} from './layers/loss.ts'
export {
  GroupNorm,
  type GroupNormOptions,
  LayerNorm,
  type LayerNormOptions,
  type NormalizedShape,
  RMSNorm,
  type RMSNormOptions,
} from './layers/norm.ts'
export {
  AdaptiveAvgPool1d,
  AdaptiveAvgPool2d,
  AdaptiveMaxPool1d,
  AdaptiveMaxPool2d,
  AvgPool1d,
  AvgPool2d,
  MaxPool1d,
  MaxPool2d,
} from './layers/pool.ts'
export {
  GRU,
  GRUCell,
  LSTM,
  LSTMCell,
  type RecurrentCellOptions,
  type RecurrentOptions,
  RNN,
  RNNCell,
  type RNNCellOptions,
  type RNNOptions,
} from './layers/recurrent.ts'
export { Flatten, Identity, Unflatten } from './layers/reshaping.ts'
export {
  type CausalBlock,
  CausalLM,
  type CausalLMConfig,
  type CausalLMOutput,
  type TokenPlaces,
} from './models/causal-lm.ts'
export {
  type EncoderForwardOptions,
  type StackOptions,
  Transformer,
  TransformerDecoder,
  TransformerEncoder,
  type TransformerForwardOptions,
  type TransformerOptions,
} from './models/encoder-decoder.ts'
export { type GenerateOptions, Generation, generate, type LanguageModel } from './models/generate.ts'
export { GPT, type GPTConfig } from './models/gpt.ts'
export { Llama, type LlamaBlock, type LlamaConfig } from './models/llama.ts'
export {
  type BlockForwardOptions,
  type DropoutRates,
  GatedMLP,
  MLP,
  type MLPForwardOptions,
  type MLPOptions,
  TransformerBlock,
  type TransformerBlockForwardOptions,
  type TransformerBlockOptions,
} from './models/transformer.ts'
export {
  type DecoderForwardOptions,
  type EncoderLayerForwardOptions,
  TransformerDecoderLayer,
  TransformerEncoderLayer,
  type TransformerLayerOptions,
} from './models/transformer-layers.ts'
export type { ForwardHook, ForwardPreHook, FullBackwardHook, HookHandle } from './module/hooks.ts'
export { buffer, Module, parameter } from './module/module.ts'
export type { LoadResult, StateDict } from './module/state-dict.ts'
export { Adafactor, type AdafactorOptions } from './optim/adafactor.ts'
export { Adagrad, type AdagradOptions } from './optim/adagrad.ts'
export { Adam, type AdamOptions, AdamW, type AdamWOptions, decayGroups } from './optim/adam.ts'
export { ChainedScheduler, type ChainedState, SequentialLR } from './optim/chained-lr.ts'
export { clipGradNorm, clipGradValue } from './optim/clip.ts'
export {
  type CycleMomentumOptions,
  CyclicLR,
  type CyclicLROptions,
  OneCycleLR,
  type OneCycleLROptions,
} from './optim/cyclic-lr.ts'
export { EMA, type EMAOptions } from './optim/ema.ts'
export { GradScaler, type GradScalerOptions, type GradScalerStateDict } from './optim/grad-scaler.ts'
export { Lion, type LionOptions } from './optim/lion.ts'
export {
  type AnyOptimizer,
  LRScheduler,
  type LRSchedulerOptions,
  type LRSchedulerState,
} from './optim/lr-scheduler.ts'
export { Muon, type MuonOptions, muonGroups } from './optim/muon.ts'
export {
  type Counted,
  type DueParameter,
  Optimizer,
  type OptimizerStateDict,
  type ParamGroup,
  type ParamsOrGroups,
  type Update,
  type ZeroGradOptions,
} from './optim/optimizer.ts'
export { type ParamState, stateTensor } from './optim/param-state.ts'
export {
  ReduceLROnPlateau,
  type ReduceLROnPlateauOptions,
  type ReduceLROnPlateauState,
} from './optim/reduce-lr-on-plateau.ts'
export { RMSprop, type RMSpropOptions } from './optim/rmsprop.ts'
export * as schedule from './optim/schedule.ts'
export {
  ConstantLR,
  type ConstantLROptions,
  CosineAnnealingLR,
  type CosineAnnealingLROptions,
  CosineAnnealingWarmRestarts,
  type CosineAnnealingWarmRestartsOptions,
  ExponentialLR,
  LambdaLR,
  LinearLR,
  type LinearLROptions,
  type LRLambda,
  MultiplicativeLR,
  MultiStepLR,
  PolynomialLR,
  type PolynomialLROptions,
  StepLR,
  type StepLROptions,
} from './optim/schedulers.ts'
export { SGD, type SGDOptions } from './optim/sgd.ts'
export { QuantizedEmbedding, QuantizedLinear, type QuantizeOptions, quantize } from './quantize.ts'
export { loadCheckpoint, saveCheckpoint } from './weights/checkpoint.ts'
export { loadPretrained, type Pretrained, savePretrained } from './weights/pretrained.ts'
export type { PretrainedConfig } from './weights/pretrained-config.ts'
export {
  loadSafetensors,
  readSafetensors,
  type Safetensors,
  type StoredDType,
  type StoredTensor,
  saveSafetensors,
  storedValues,
  writeSafetensors,
} from './weights/safetensors.ts'
