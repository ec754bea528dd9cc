import './torch/modules.ts'
import './torch/modules-layers.ts'
import './torch/modules-transformer.ts'
import './torch/modules-recurrent.ts'
import './torch/modules-conv.ts'

/** Every module by PyTorch's name: how to make and to call ours. */
export { type TorchModule, torchModuleOf } from './torch/module-row.ts'
