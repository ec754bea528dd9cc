/**
 * Datasets, batches, and readers of files, as torch.utils.data.
 *
 * @packageDocumentation
 */

export { type Collated, DataError, defaultCollate } from './collate.ts'
export { DataLoader, type DataLoaderOptions } from './data-loader.ts'
export {
  ConcatDataset,
  type Dataset,
  type IterableDataset,
  type RandomSplitOptions,
  randomSplit,
  Subset,
  TensorDataset,
} from './dataset.ts'
export { RandomSampler, type RandomSamplerOptions, type Sampler } from './sampler.ts'
