/**
 * Datasets, batches and readers of files: everything of `@tilegrad/data`, which only programs that import this load.
 *
 * @module data
 */
export * from '@tilegrad/data'
