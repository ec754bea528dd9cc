/**
 * Datasets, batches, and readers of files, as torch.utils.data.
 *
 * @packageDocumentation
 */

export type { ByteSource } from './bytes.ts'
export { type Collated, DataError, defaultCollate } from './collate.ts'
export { type CsvOptions, csvRows, readCsv } from './csv.ts'
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
export { type ReadIdxOptions, readIdx } from './idx.ts'
export { type ParquetOptions, parquetRows, readParquet } from './parquet.ts'
export { RandomSampler, type RandomSamplerOptions, type Sampler } from './sampler.ts'
export type { Column, ColumnType, Table } from './table.ts'
export {
  TextStream,
  type TextStreamOptions,
  TokenWindows,
  type TokenWindowsOptions,
  type Window,
} from './windows.ts'
