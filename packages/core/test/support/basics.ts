/** What the machinery below tensors uses of core, for bundles that test it alone. */
export { describe as describeValue, expectOptions } from '../../src/checks.ts'
export * from '../../src/errors.ts'
