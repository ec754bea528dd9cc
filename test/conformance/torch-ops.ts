import './torch/elementwise.ts'
import './torch/reductions.ts'
import './torch/shapes.ts'
import './torch/layers.ts'
import './torch/more.ts'
import './torch/conv.ts'
import './torch/losses.ts'

/** Every operator by PyTorch's name: its arguments, and how to call ours with them. */
export { type TorchOp, torchOp, torchOpNames } from './torch/row.ts'
