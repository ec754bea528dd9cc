import { loadPackedProducts } from '@tilegrad/backend-cpu'
import { type Module, type QuantizeOptions, quantize as quantizeModule } from '@tilegrad/nn'

/**
 * Stores the weights of a model's `Linear` layers in 8 bits, for inference: see `quantize` of `@tilegrad/nn`, beside which it
 * brings the CPU's kernels for them into a bundle.
 *
 * @param model is changed in place.
 * @returns the model.
 * @throws ValueError for options out of range, and for a model that is a layer itself or that has none to quantize.
 * @example
 * const model = new Sequential(new Linear(32, 64), new GELU(), new Linear(64, 3))
 * const y = noGrad(() => quantize(model).forward(randn([2, 32])))
 * y.shape // → 2,3
 */
export function quantize<M extends Module>(model: M, options?: QuantizeOptions): M {
  loadPackedProducts()
  return quantizeModule(model, options)
}
