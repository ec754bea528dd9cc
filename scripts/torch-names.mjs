// What docs/from-pytorch.md cannot find out by asking the library: what is there under another name, what is left out and why,
// and which of PyTorch's names nobody meets who builds transformers. Patterns match whole names; the first that matches counts.

/** Names that the page passes over: insides, and whole fields that this library does not enter. @type {readonly string[]} */
export const passedOver = [
  // Types and insides of the interpreter, the compiler, serialisation.
  '[A-Z]\\w*(Type|Storage|Tensor|Error|State|Module|Function|Object|Exception|Dict|List|Iterator|Config|Stats|Logger|Property|Guard|Set|Context|Reader|Writer|Builder|Notes|Value|Info|Key|Spec|Unit)',
  'AVG|SUM|AliasDb|AggregationType|Argument\\w*|Benchmark\\w*|Block|CallStack|Capsule|Code|CompilationUnit|Event|ExecutionPlan|FileCheck|Future|Gradient|Graph|IODescriptor|Node|PRIVATE_OPS|ScriptClass|ScriptMethod|Stream|SymBool|SymFloat|SymInt|Tag|ThroughputBenchmark|USE_\\w+|Use|UnionType|DisableTorchFunction\\w*|DeserializationStorageContext|JITException|ExcludeDispatchKeyGuard|LockingLogger|LoggerBase|StaticModule|Size|Storage|Value|BroadcastingList\\d|DType|DeviceType|GRID_SAMPLE\\w*|ScalingType|SwizzleType|EPOCH\\w*|PARAM_LIST|DFIterDataPipe|DataChunk|Profiler\\w*|NestedIO\\w*|SavedTensor|DeepCopyMemoTable|OptimizerP\\w+Hook|IterDataPipe|MapDataPipe|Container|Variable|NoneType|FatalError|T_destination',
  '\\w*_copy|sym_\\w+|is_(?!nan|inf|finite|leaf|contiguous|grad_enabled|floating_point|tensor|same_size|complex|nonzero|signed)\\w+|import_ir\\w*|parse_\\w+|merge_type\\w*|unify_type\\w*|typename|autocast_\\w+crement_nesting|(set|get|is|clear)_autocast\\w*|get_(device_module|file_path|num_interop_threads|deterministic_debug_mode|float32_matmul_precision|extra_state|worker_info)|set_(num_interop_threads|deterministic_debug_mode|float32_matmul_precision|vital|warn_always|flush_denormal|extra_state|submodule|default_tensor_type|)|init_num_threads|compiled_with\\w*|has_(lapack|mkl|openmp|spectral|names|torch_function\\w*)|vitals_enabled|read_vitals|prepare_multi\\w*|profiler\\w*|profile\\w*|classproperty|classes|ops|backends|builtins|default_generator|fork|wait|cond|while_loop|legacy_contiguous_format|channels_last(_3d)?|contiguous_format|preserve_format|memory_format|strided|jagged|bit|bits\\w+|u?int[1-7]|uint(16|32|64)|float(4|8)_\\w+|q?u?int\\d(x\\d)?|qu?int\\w+|qscheme|per_(channel|tensor)\\w*|e|from_file|hash_tensor|handle_torch_function|assert_int_or_pair|boolean_dispatch|reproducibility_notes|sparse_support_notes|tf32_notes|argument_validation|functional_datapipe|guaranteed\\w*|non_deterministic|runtime_validation\\w*|dim_order|reinforce|output_nr|volatile|name|names|module_load|as_subclass|apply_|map_|map2_|to_padded_tensor|grad_dtype|mode|types|kineto_available|forward_ad|variable|graph|dump_patches|call_super_init|debug_unwrap|functionalize|profile_hook_step|register_(load_)?state_dict\\w*|factory_kwargs|set_vital|batch_norm_\\w+|native_\\w+|\\w+_forward|rnn_(relu|tanh)(_cell)?|gru(_cell)?|lstm(_cell)?|conv_tbc|convolution|affine_grid_generator|grid_sampler\\w*|embedding_renorm_|norm_except_dim|fused_moving\\w*|constant_pad_nd|segment_reduce|index_reduce_?|dsmm|hsmm|saddmm|unsafe_\\w+|slice_inverse|can_cast|are_deterministic\\w*|use_deterministic\\w*|isreal|annotations',
  'ErrorReport|FunctionSchema|ScriptModuleSerializer|StorageBase|is_inference\\w*|histogramdd|poisson|PixelUnshuffle|Tensor|is_tensor_like|set_multithreading_enabled|replace_all\\w+',
  // What these modules import from others.
  'torch\\.ModuleDict|torch\\.nn\\.functional\\.Tensor|torch\\.optim\\.\\w+\\.(Tensor|Module|Optimizer|LRScheduler)|torch\\.(gradient|layout|dequantize)|torch\\.Tensor\\.layout',
  // Sparse tensors, complex numbers, quantised tensors of its own kind, named dims.
  '\\w*sparse\\w*|coalesce|(ccol|col|crow|row)_indices|indices|values|dense_dim|hspmm|spmm|sspaddmm|smm|to_dense',
  'complex\\w*|c(double|float|half)|chalf|(a|is_c)onj\\w*|conj\\w*|angle|polar|real|imag|resolve_\\w+|view_as_(complex|real)|adjoint|m?H|sgn_?|is_complex|mT',
  'q_\\w+|quantize\\w*|\\w*quantized\\w*|dequantize|int_repr|fbgemm\\w*|fake_quantize\\w*|choose_qparams\\w*|empty_quantized',
  'align_\\w+|refine_names|rename_?|has_names',
  // Fourier transforms and windows of signals; decompositions; special functions.
  'i?stft|\\w+_window',
  'cholesky\\w*|svd\\w*|qr|lu|lu_\\w+|eig|symeig|lstsq|triangular_solve|pinverse|inverse|det|logdet|slogdet|geqrf|orgqr|ormqr|solve|lobpcg|pca_lowrank|matrix_(exp|power|rank)|nuclear_norm|frobenius_norm|chain_matmul|vander',
  'i0_?|igammac?_?|lgamma_?|mvlgamma_?|digamma_?|polygamma_?|sinc_?|erfcx|nextafter_?|ldexp_?|frexp|copysign_?|gcd_?|lcm_?|heaviside_?|signbit|deg2rad_?|rad2deg_?|float_power_?|xlogy_?|logaddexp2',
  // Other hardware and memory of its own.
  'cuda|ipu|xpu|mtia|mps|cudnn_\\w+|miopen_\\w+|mkldnn_\\w+|to_mkldnn|pin_memory|share_memory_?|record_stream|data_ptr|storage\\w*|untyped_storage|set_|resize\\w*|shared_memory|get_device|from_dlpack|to_dlpack|frombuffer|empty_(permuted|strided)|new_empty_strided|as_strided\\w*',
  // Three dims, and layers of images that transformers have not.
  '\\w*3d(_with_indices)?|LP\\w+|lp_\\w+|MaxUnpool\\dd|max_unpool\\dd|Fractional\\w+|fractional_\\w+|Lazy\\w+|Uninitialized\\w+|CrossMap\\w+|LocalResponseNorm|local_response_norm|SyncBatchNorm|convert_\\w+|fuse_\\w+|grid_sample|affine_grid|\\w*(p|P)ixel_?(un)?_?(s|S)huffle|(c|C)hannel_?(s|S)huffle|Feature\\w+|feature_\\w+|(Upsample|Upsampling)\\w*|upsample\\w*|interpolate|Adaptive(Log)\\w+|Embedding(Bag)|embedding_bag|CTCLoss|ctc_loss|Softmax2d|NLLLoss2d|Data(Parallel)|Distributed\\w+|RNN(Cell)?Base|(max|adaptive_max)_pool\\dd_with_indices|grouped_mm|scaled_\\w*mm|Circular\\w+|Constant\\w+|Reflection\\w+|Replication\\w+|Zero\\w+',
]

/**
 * Names of this library that mean something else than PyTorch's: of the expressions of kernels, of a tensor's memory, of drawing by
 * a shape. By their place there; a look into the other lists follows.
 */
export const unlike =
  'torch\\.(gradient|layout|device|dequantize|bernoulli|ModuleDict)|torch\\.Tensor\\.(layout|storage|data)|torch\\.nn\\.functional\\.(Tensor|unfold|fold)|torch\\.optim\\.\\w+\\.(Tensor|Module|Optimizer)|torch\\.optim\\.swa_utils\\.LRScheduler|torch\\.func\\.(grad|hessian)'

/**
 * By PyTorch's names: how to write it. Code stands in `…`; docs/from-pytorch.test.ts type-checks it.
 *
 * @type {Readonly<Record<string, string>>}
 */
export const elsewhere = {
  // Creation and conversion.
  from_numpy: '`tensor(typedArray)`',
  'asarray|scalar_tensor': '`tensor`',
  'new|new_tensor': '`tensor(array, { device: x.device })`',
  'new_(empty|zeros|ones)': '`zeros(shape, { device: x.device })` and its like',
  new_full: '`full(shape, value, { device: x.device })`',
  numpy: '`await x.data()`',
  tolist: '`await x.toArray()`',
  data: '`x.detach()`',
  device: "`'cpu'`, `'webgpu'`: devices are strings",
  float: "`x.to('float32')`",
  double: "`x.to('float64')`",
  half: "`x.to('float16')`",
  bfloat16: "`x.to('bfloat16')`, `'bfloat16'`",
  bool: "`x.to('bool')`, `'bool'`",
  'int|long|short|char|byte': "`x.to('int32')`",
  'float16|float32|float64|int32': "`'float32'` and its like",
  'int8|int16|int64|uint8': "`'int32'`; typed arrays of these are read in as what they are",
  dtype: 'the type `DType`',
  'type|type_as': '`x.to(y.dtype)`',
  cpu: "`x.to('cpu')`",
  to_empty: "`model.to('cpu')`",
  logspace: '`pow(10, linspace(0, 3, n))`',
  range: '`arange`',
  normal: '`randn(shape, { mean, std })`',
  // Shapes.
  't|swapdims': '`x.T`, `x.transpose`',
  't_|transpose_|swapaxes_|swapdims_|squeeze_|unsqueeze_|detach_': 'the method without _, which is a view',
  moveaxis: '`x.movedim`',
  ravel: '`x.flatten`',
  reshape_as: '`x.reshape(y.shape)`',
  stride: '`x.strides`',
  storage_offset: '`x.offset`',
  'numel|nelement': '`x.numel`',
  'dim|ndimension': '`x.rank`',
  'element_size|itemsize': '`dtypeInfo[x.dtype].bytes`',
  nbytes: '`x.numel * dtypeInfo[x.dtype].bytes`',
  fliplr: '`x.flip(1)`',
  flipud: '`x.flip(0)`',
  rot90: '`x.transpose(0, 1).flip(0)`',
  'split_with_sizes|tensor_split|hsplit|vsplit|dsplit': '`x.split(sizes, dim)`, `x.chunk(n, dim)`',
  'concat|concatenate': '`cat`',
  row_stack: '`vstack`',
  'column_stack|dstack': '`stack([a, b], dim)`, `cat([a, b], dim)`',
  'atleast_(1|2|3)d': '`x.unsqueeze(0)`',
  'broadcast_tensors|broadcast_shapes': '`x.broadcastTo(shape)`',
  cartesian_prod: '`stack(meshgrid([a, b]).map((g) => g.flatten()), 1)`',
  diagflat: '`x.flatten().diag()`',
  'diagonal_scatter|fill_diagonal_': '`where(eye(n).gt(0), value, x)`',
  index: "`x.at('1:3')`",
  'select_scatter|slice_scatter': "`x.indexPut(['1:3'], value)`",
  put: '`x.indexPut([index], value)`',
  'index_put_|put_': '`x.set([index], value)`',
  newaxis: '`null` in `x.at(null)`',
  unravel_index: '`index.floorDivide(n)`, `index.remainder(n)`',
  bucketize: '`searchsorted(values, x)`',
  isin: '`x.unsqueeze(-1).eq(values).any(-1)`',
  // Elementwise.
  'arc(cos|sin|tan|cosh|sinh|tanh|tan2)': '`acos`, `asin`, `atan`, `acosh`, `asinh`, `atanh`, `atan2`',
  'absolute|absolute_': '`abs`, `x.abs_`',
  '(multiply|divide|subtract|true_divide|negative)_?': '`mul`, `div`, `sub`, `neg`, and with _',
  positive: '`x`',
  '(greater|less)(_equal)?|not_equal': '`gt`, `ge`, `lt`, `le`, `ne`',
  'clamp_(max|min)_?|clip_': '`x.clamp(-1, 1)`, `x.clamp_(-1, 1)`',
  'fix_?': '`trunc`, `x.trunc_`',
  fmax: '`where(a.isnan(), b, where(b.isnan(), a, a.maximum(b)))`',
  fmin: '`where(a.isnan(), b, where(b.isnan(), a, a.minimum(b)))`',
  rsub: '`b.sub(a)`',
  fill: '`fullLike(x, value)`',
  'logit_?': '`x.div(sub(1, x)).log()`',
  bitwise_and: '`logicalAnd`, of bools',
  bitwise_or: '`logicalOr`, of bools',
  bitwise_not: '`logicalNot`, of bools',
  bitwise_xor: '`logicalXor`, of bools',
  'addmv_?': '`x.add(w.matmul(v))`',
  'addr_?': '`x.add(outer(a, b))`',
  ger: '`outer`',
  vdot: '`a.dot(b)`',
  inner: '`a.matmul(b.T)`',
  'addbmm_?': '`x.add(bmm(a, b).sum(0))`',
  'baddbmm_|addmm_': '`addmm`, `baddbmm`',
  kthvalue: '`x.sort(dim)[0].select(dim, k - 1)`',
  msort: '`x.sort(0)`',
  nanmedian: '`(await x.maskedSelect(x.isnan().logicalNot())).median()`',
  nanquantile: '`(await x.maskedSelect(x.isnan().logicalNot())).quantile(0.5)`',
  histogram: '`histc`',
  nonzero_static: '`await nonzero(x)`',
  cov: '`x.sub(x.mean(1, { keepdim: true })).matmul(x.sub(x.mean(1, { keepdim: true })).T).div(n - 1)`',
  corrcoef: 'as cov, of `x.div(x.std(1, { keepdim: true }))`',
  'trapezoid|trapz|cumulative_trapezoid':
    "`y.at('1:').add(y.at(':-1')).mul(x.diff()).div(2).sum()`, `x.cumsum(0)`",
  sum_to_size: '`x.sum(dim, { keepdim: true })`',
  pdist: 'the upper half of `cdist(x, x)`',
  bernoulli: '`rand(p.shape).lt(p)`',
  where: '`where(x.gt(0), x, y)`',
  is_nonzero: '`await x.item()`',
  pi: '`Math.PI`',
  inf: '`Infinity`',
  nan: '`NaN`',
  'finfo|iinfo|is_signed': '`dtypeInfo`',
  'promote_types|result_type': '`promote`',
  is_tensor: '`x instanceof Tensor`',
  is_same_size: '`x.shape.join() === y.shape.join()`',
  // State.
  requires_grad_: '`x.requiresGrad`',
  register_post_accumulate_grad_hook: '`x.registerHook(hook)`',
  is_grad_enabled: '`gradEnabled`',
  'set_grad_enabled|inference_mode|grad_mode': '`noGrad(() => x.mul(2))`, `enableGrad(() => x.mul(2))`',
  '(set_)?(anomaly_enabled|detect_anomaly)|is_anomaly\\w*|anomaly_mode|set_anomaly_enabled':
    '`detectAnomaly(() => x.sum().backward())`',
  Generator: '`RandomGenerator`',
  'seed|initial_seed|random': '`manualSeed`, `getRngState`',
  log_normal_: '`x.normal_().exp_()`',
  'get_default_device|set_default_device': '`defaultBackend`, `setDevice`',
  'get_default_dtype|set_default_dtype': "`zeros(shape, { dtype: 'float64' })`",
  'get_num_threads|set_num_threads': '`createCpuBackend({ threads: 2 })`',
  set_printoptions: '`setPrintOptions`',
  save: '`saveCheckpoint`, `saveSafetensors`',
  load: '`loadCheckpoint`, `loadSafetensors`',
  // nn.
  Parameter: '`parameter`',
  'Buffer|BufferDict': '`buffer`',
  'ParameterDict|ParameterList': 'objects and arrays of `parameter(x)`',
  dropout1d: '`new Dropout1d(0.1).forward(x)`',
  dropout2d: '`new Dropout2d(0.1).forward(x)`',
  dropout_: '`dropout`',
  'bilinear|Bilinear': "`einsum('bi,oij,bj->bo', a, w, b)`",
  'instance_norm|InstanceNorm[12]d': '`groupNorm(x, x.size(1))`',
  'triplet_margin_with_distance_loss|TripletMarginWithDistanceLoss':
    '`pairwiseDistance(x, a).sub(pairwiseDistance(x, b)).add(1).relu().mean()`',
  'PoissonNLLLoss|poisson_nll_loss': '`x.exp().sub(y.mul(x)).mean()`',
  'GaussianNLLLoss|gaussian_nll_loss': '`v.log().add(x.sub(y).square().div(v)).mul(0.5).mean()`',
  'MultiLabelSoftMarginLoss|multilabel_soft_margin_loss': '`binaryCrossEntropyWithLogits`',
  unfold: '`im2col`',
  fold: '`col2im`',
  'add_module|register_module|register_parameter|register_buffer':
    'properties: `parameter(x)`, `buffer(x)`, modules',
  get_buffer: '`model.namedBuffers()`',
  register_backward_hook: '`model.registerFullBackwardHook`',
  compile: '`compile`',
  forward: 'forward, which your class writes',
  // init.
  '(constant|normal|uniform|orthogonal|xavier_\\w+|kaiming_\\w+|eye|dirac)': 'the one that ends in _',
  // nn.utils.
  'clip_grad_norm_|clip_grads_with_norm_': '`clipGradNorm`',
  clip_grad_value_: '`clipGradValue`',
  get_total_norm: '`totalNorm`',
  parameters_to_vector: '`cat(params.map((p) => p.flatten()))`',
  vector_to_parameters: '`v.split(params.map((p) => p.numel))`',
  // Optimisers.
  'AveragedModel|get_ema\\w+': '`EMA`',
  // Data.
  SequentialSampler: '`new DataLoader(dataset, { shuffle: false })`',
  BatchSampler: '`new DataLoader(dataset, { batchSize: 4 })`',
  'SubsetRandomSampler|Sampler': 'the type `Sampler`',
  WeightedRandomSampler: '`multinomial(v, n, { replacement: true })`',
  default_convert: '`new DataLoader(dataset, { collate: (samples) => samples })`',
  Dataset: 'the type `Dataset`',
  'IterableDataset|ChainDataset': 'the type `IterableDataset`: generators',
  StackDataset: '`new TensorDataset(a, b)`',
  // Autograd.
  Function: '`customFunction`',
  gradgradcheck: '`gradcheck` of `grad(y, [x], { createGraph: true })`',
  grad: '`grad(fn(x), [x])`',
  hessian: '`hessian(fn, x)`',
  'jacfwd|jacrev': '`jacobian`',
  'vjp|vhp|grad_and_value': '`grad(fn(x), [x], { gradOutputs: [v] })`',
  'jvp|hvp|linearize': '`grad` of `grad(y, [x], { gradOutputs: [v], createGraph: true })`',
  stack_module_state: '`stack(params)`',
}

/** Why others are not there. @type {readonly (readonly [why: string, names: string])[]} */
export const leftOut = [
  [
    'layers and losses that no lesson of transformers has',
    'alpha_dropout_?|AlphaDropout|rrelu_?|RReLU|(MultiLabel|Multi)MarginLoss|(multilabel|multi)_margin_loss',
  ],
  [
    'samples and groups that no lesson of transformers has',
    'binomial|geometric_|cauchy_|unique_consecutive|block_diag|combinations|renorm|scatter_reduce_?',
  ],
  ['in place only where it saves memory that counts: write x.copy_(x.f())', '\\w+_'],
  ['bits of integers: models of text need none', 'bitwise_\\w+'],
  [
    'optimisers that transformers are not trained with',
    'ASGD|Adadelta|Adamax|LBFGS|NAdam|RAdam|Rprop|SparseAdam',
  ],
  ['averages of weights at equal shares: EMA is there', 'SWALR|get_swa\\w+|update_bn'],
  [
    'reparametrised weights: write them in forward',
    '(spectral|weight)_norm|remove_\\w+|skip_init|parametri\\w+',
  ],
  [
    'parameters belong to their module, and to their optimiser from its start',
    'functional_call|add_param_group',
  ],
  ['call a function before or after', 'register_step_\\w+|register_full_backward_pre_hook'],
]
