/** What each function does is said where it is: in words.js. */

export const MARKS: { readonly [state: string]: string | undefined };
export function stateCounts<S extends string>(replicas: readonly { state: S }[]): [S, number][];
export function visible(text: string, longest?: number): string;
export function multiline(text: string): string;
export function lastLine(text: string): string;
export function newestLine(text: string): string;
export function modelName(model: string): string;
export function clock(seconds: number): string;
export function duration(seconds: number): string;
export function age(seconds: number): string;
export function roughly(seconds: number): string;
export function size(bytes: number): string;
export function timeOfDay(unix: number, seconds?: boolean): string;
